"""RandAugment on batches: each image gets its own operations and magnitudes.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space", with the fourteen
operations and ranges of FixMatch (Sohn et al. 2020, table 12). Images with the same operation are changed together; the
five geometric operations share one resampling.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.vision.affine import resample
from sft_lightning.utils.transfer import to_device

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def grayscale(x: Tensor) -> Tensor:
    """Compute the luma of images.

    Args:
        x: Images of shape (B, C, H, W) with C of 1 or 3.

    Returns:
        Gray images of shape (B, 1, H, W).
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = _LUMA
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]


def _per_image(m: Tensor) -> Tensor:
    return m.view(-1, 1, 1, 1)


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Blend a share of each image with the rest of another one."""
    return torch.lerp(other.expand_as(x), x, _per_image(share)).clamp_(0, 1)


def brightness(x: Tensor, m: Tensor) -> Tensor:
    """Scale each pixel by m."""
    return (x * _per_image(m)).clamp_(0, 1)


def color(x: Tensor, m: Tensor) -> Tensor:
    """Keep a share m of the color and replace the rest by gray; gray images stay unchanged."""
    return x if x.shape[1] == 1 else _blend(x, grayscale(x), m)


def contrast(x: Tensor, m: Tensor) -> Tensor:
    """Keep a share m of each pixel and replace the rest by the mean gray of the image."""
    return _blend(x, grayscale(x).mean((1, 2, 3), keepdim=True), m)


def sharpness(x: Tensor, m: Tensor) -> Tensor:
    """Keep a share m of each pixel and replace the rest by its smoothed neighborhood, except at the border."""
    if min(x.shape[-2:]) < 3:
        return x
    kernel = to_device(_SMOOTH.to(x.dtype), x.device)
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])
    return _blend(x, smooth, m)


def posterize(x: Tensor, m: Tensor) -> Tensor:
    """Keep the m highest of eight bits."""
    step = _per_image(torch.pow(2.0, 8 - m.floor()))
    return (x * 255).round_().div_(step).floor_().mul_(step).div_(255)


def solarize(x: Tensor, m: Tensor) -> Tensor:
    """Invert pixels of at least m."""
    return torch.where(x < _per_image(m), x, 1 - x)


def autocontrast(x: Tensor, m: Tensor) -> Tensor:
    """Stretch each channel over the full range; m is unused."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    width = high - low
    return torch.where(width > 0, (x - low) / width.clamp_min(1e-6), x).clamp_(0, 1)


def equalize(x: Tensor, m: Tensor) -> Tensor:
    """Flatten the histogram of each channel, as PIL does on 8-bit pixels; m is unused."""
    count, channels, height, width = x.shape
    pixels = (x * 255).round_().long().reshape(count * channels, height * width)
    histogram = torch.zeros(count * channels, 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(1, pixels, torch.ones_like(pixels))
    last = histogram.gather(1, pixels.amax(1, keepdim=True))
    step = (height * width - last) // 255
    table = ((histogram.cumsum(1) - histogram + step // 2) // step.clamp_min(1)).clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.gather(1, pixels).view_as(x).to(x.dtype) / 255


def identity(x: Tensor, m: Tensor) -> Tensor:
    """Return the images unchanged."""
    return x


# Name of each pixel operation: the function, and the smallest and largest magnitude m.
PIXELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "autocontrast": (autocontrast, 0.0, 1.0),
    "brightness": (brightness, 0.05, 0.95),
    "color": (color, 0.05, 0.95),
    "contrast": (contrast, 0.05, 0.95),
    "equalize": (equalize, 0.0, 1.0),
    "identity": (identity, 0.0, 1.0),
    "posterize": (posterize, 4.0, 9.0),  # 4 to 8 bits, each as likely
    "sharpness": (sharpness, 0.05, 0.95),
    "solarize": (solarize, 0.0, 1.0),
}
_RANGES = {"rotate": math.radians(30), "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}
OPERATIONS = (*PIXELS, *GEOMETRIC)
_LOW = torch.tensor([low for _, low, _ in PIXELS.values()] + [0.0] * len(GEOMETRIC))
_WIDTH = torch.tensor([high - low for _, low, high in PIXELS.values()] + [_RANGES[name] for name in GEOMETRIC])


def build_affine(kind: Tensor, m: Tensor, height: int, width: int) -> Tensor:
    """Build the affine maps of geometric operations, from output pixels to source pixels.

    Args:
        kind: Positions in `GEOMETRIC`, of shape (B,).
        m: Magnitudes, of shape (B,): radians clockwise, shear, or fraction of the side.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        Maps of shape (B, 2, 3), for `resample`.
    """
    turn, shear_x, shear_y, shift_x, shift_y = (torch.where(kind == k, m, 0.0) for k in range(len(GEOMETRIC)))
    cosine, sine = turn.cos(), turn.sin()
    x = [cosine, sine + shear_x, shift_x * width]
    y = [shear_y - sine, cosine, shift_y * height]
    return torch.stack([*x, *y], 1).view(-1, 2, 3)


def randaugment(x: Tensor, operations: int, generator: torch.Generator) -> Tensor:
    """Apply random operations to each image, one after the other.

    Args:
        x: Images, float in [0, 1] of shape (B, C, H, W) with C of 1 or 3.
        operations: Number of operations per image.
        generator: Random generator on the CPU.

    Returns:
        New images of the same shape; pixels from outside an image are black.
    """
    count, _, height, width = x.shape
    rows = torch.arange(count)  # index in the input of the image at each position
    for _ in range(operations if count else 0):
        chosen = torch.randint(0, len(OPERATIONS), (count,), generator=generator)
        share = torch.rand(count, generator=generator)
        share = torch.where(chosen < len(PIXELS), share, 2 * share - 1)  # geometric operations go in both directions
        amount = _LOW[chosen] + share * _WIDTH[chosen]
        # Sort images by operation: each operation is then one slice, and the choices are copied to the device at once.
        chosen, order = chosen.sort(stable=True)
        x, rows = x[to_device(rows.argsort()[order], x.device)], order
        amount = amount[order]
        m, bounds = to_device(amount, x.device), torch.searchsorted(chosen, torch.arange(len(PIXELS) + 1)).tolist()
        parts = [
            x[first:last] if change is identity else change(x[first:last], m[first:last])
            for (change, _, _), first, last in zip(PIXELS.values(), bounds, bounds[1:], strict=False)
            if first < last
        ]
        if (first := bounds[-1]) < count:
            source = build_affine(chosen[first:] - len(PIXELS), amount[first:], height, width)
            parts.append(resample(x[first:], source))
        x = torch.cat(parts, out=torch.empty_like(x))
    return x[to_device(rows.argsort(), x.device)]


def cutout(x: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """Cover a square of each image with gray (DeVries & Taylor 2017); part of it may lie outside.

    Args:
        x: Images, float of shape (B, C, H, W).
        side: Side of the square as a fraction of the image's sides.
        generator: Random generator on the CPU.

    Returns:
        New images of the same shape.
    """
    height, width = x.shape[-2:]
    center = to_device(torch.rand(2, len(x), 1, generator=generator), x.device)
    rows = (torch.arange(height, device=x.device) + 0.5 - center[0] * height).abs() < side * height / 2
    columns = (torch.arange(width, device=x.device) + 0.5 - center[1] * width).abs() < side * width / 2
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)
