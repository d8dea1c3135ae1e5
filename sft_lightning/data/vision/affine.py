"""Affine maps of batches, one for each image, given as the source position of each output pixel."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.utils.transfer import to_device


def resample(x: Tensor, source: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample images at affine source positions; pixels from outside the image are black.

    Args:
        x: Images, float of shape (B, C, H, W).
        source: Maps of shape (B, 2, 3) from an output pixel to a pixel of the image, in pixels from the center, x
            before y.
        mode: Interpolation: `bilinear` or `nearest`.

    Returns:
        Images of the shape of `x`.
    """
    height, width = x.shape[-2:]
    # The grid's unit is half a side.
    unit = torch.tensor([[1.0, height / width, 2 / width], [width / height, 1.0, 2 / height]])
    grid = F.affine_grid(to_device(source * unit, x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


def draw_affine(
    count: int,
    sides: Sequence[int],
    rotation: float,
    translation: float,
    scale: Sequence[float],
    shear: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw maps that rotate, shift, scale and shear each image by independent amounts, uniform in the ranges.

    Args:
        count: Number of images B.
        sides: Height and width of the images.
        rotation: Maximum angle in degrees, in either direction.
        translation: Maximum shift as a fraction of the side, in either direction.
        scale: Smallest and largest factor.
        shear: Maximum shear along x in degrees, in either direction.
        generator: Random generator on the CPU.

    Returns:
        Inverse maps of shape (B, 2, 3), for `resample`.
    """
    height, width = sides
    amount = torch.rand(5, count, generator=generator)
    angle, slope = (math.radians(most) * (2 * share - 1) for most, share in ((rotation, amount[0]), (shear, amount[1])))
    shift_x, shift_y = (2 * amount[2:4] - 1) * translation * torch.tensor([[width], [height]])
    factor = scale[0] + amount[4] * (scale[1] - scale[0])
    return invert_affine(angle, slope.tan(), shift_x, shift_y, factor)


def invert_affine(angle: Tensor, slope: Tensor, shift_x: Tensor, shift_y: Tensor, factor: Tensor) -> Tensor:
    """Return the inverse of the map: shear along x, rotate clockwise, scale, shift.

    Args:
        angle: Angles in radians, of shape (B,).
        slope: Tangents of the shear, of shape (B,).
        shift_x: Shifts to the right in pixels, of shape (B,).
        shift_y: Shifts down in pixels, of shape (B,).
        factor: Scale factors, of shape (B,).

    Returns:
        Inverse maps of shape (B, 2, 3), for `resample`.
    """
    sine, cosine = angle.sin(), angle.cos()
    a, b, c, d = cosine, -cosine * slope - sine, sine, cosine - sine * slope  # of determinant 1
    back = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / factor[:, None, None]
    shift = torch.stack([shift_x, shift_y], 1)[:, :, None]
    return torch.cat([back, -back @ shift], 2)


def random_resized_crop(
    x: Tensor, scale: Sequence[float], generator: torch.Generator, side: int | None = None
) -> Tensor:
    """Stretch a random rectangle of each image to full size, with area and aspect as in Inception's training.

    Args:
        x: Images, float of shape (B, C, H, W).
        scale: Smallest and largest share of the area that is kept.
        generator: Random generator on the CPU.
        side: Side of the results in pixels; None for the size of the images.

    Returns:
        Images of the shape of `x`, or (B, C, side, side).
    """
    return crop(x, draw_crops(len(x), scale, generator), side)


def draw_crops(count: int, scale: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw random rectangles, one for each image.

    Args:
        count: Number of images B.
        scale: Smallest and largest share of the area that is kept.
        generator: Random generator on the CPU.

    Returns:
        Maps of shape (B, 2, 3) from the result to the image, in units of half a side.
    """
    area = torch.empty(count).uniform_(scale[0], scale[1], generator=generator)
    # 3/4 to 4/3, as far as it fits: a crop of the whole area is the image itself.
    ratio = (torch.empty(count).uniform_(-1, 1, generator=generator) * (-area.log()).clamp(max=0.2876820724)).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    shift_x, shift_y = torch.empty(2, count).uniform_(-1, 1, generator=generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, shift_x * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, shift_y * (1 - height)
    return theta


def crop(x: Tensor, theta: Tensor, side: int | None = None, mode: str = "bilinear") -> Tensor:
    """Stretch a rectangle of each image to full size.

    Args:
        x: Images, float of shape (B, C, H, W).
        theta: Maps of shape (B, 2, 3), from `draw_crops`.
        side: Side of the results in pixels; None for the size of the images.
        mode: Interpolation: `bilinear` or `nearest`.

    Returns:
        Images of the shape of `x`, or (B, C, side, side).
    """
    size = [*x.shape[:2], *(x.shape[2:] if side is None else (side, side))]
    grid = F.affine_grid(to_device(theta, x.device), size, align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)
