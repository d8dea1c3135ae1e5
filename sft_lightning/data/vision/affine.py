"""Affine maps of whole batches, one for each picture: where each pixel of the result comes from."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.utils.transfer import to_device


def resample(x: Tensor, source: Tensor) -> Tensor:
    """Pictures whose pixels come from elsewhere, bilinear; what comes in from outside is black.

    Args:
        x: float, (B, C, H, W).
        source: (B, 2, 3): from a pixel of the result to one of the picture, in pixels from the center, x before y.
    """
    height, width = x.shape[-2:]
    # The grid's unit is half a side.
    unit = torch.tensor([[1.0, height / width, 2 / width], [width / height, 1.0, 2 / height]])
    grid = F.affine_grid(to_device(source * unit, x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_affine(
    x: Tensor, rotation: float, translation: float, scale: Sequence[float], shear: float, generator: torch.Generator
) -> Tensor:
    """Turns, shifts, scales and shears each picture by an amount of its own, uniform in the ranges.

    Args:
        x: float, (B, C, H, W).
        rotation: Degrees, at most so many in either direction.
        translation: Share of the side, the same.
        scale: Smallest and largest factor.
        shear: Degrees, along x.
        generator: On the CPU.
    """
    height, width = x.shape[-2:]
    amount = torch.rand(5, len(x), generator=generator)
    angle, slope = (math.radians(most) * (2 * share - 1) for most, share in ((rotation, amount[0]), (shear, amount[1])))
    shift_x, shift_y = (2 * amount[2:4] - 1) * translation * torch.tensor([[width], [height]])
    factor = scale[0] + amount[4] * (scale[1] - scale[0])
    return resample(x, invert_affine(angle, slope.tan(), shift_x, shift_y, factor))


def invert_affine(angle: Tensor, slope: Tensor, shift_x: Tensor, shift_y: Tensor, factor: Tensor) -> Tensor:
    """The way back of: shear along x, turn clockwise, scale, shift.

    Args:
        angle: (B,) radians.
        slope: (B,) tangent of the shear.
        shift_x: (B,) pixels.
        shift_y: (B,) pixels.
        factor: (B,).

    Returns:
        (B, 2, 3).
    """
    sine, cosine = angle.sin(), angle.cos()
    a, b, c, d = cosine, -cosine * slope - sine, sine, cosine - sine * slope  # of determinant 1
    back = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / factor[:, None, None]
    shift = torch.stack([shift_x, shift_y], 1)[:, :, None]
    return torch.cat([back, -back @ shift], 2)
