"""Views for self-supervised pre-training: strong changes of whole batches on their device, random for each image.

Changes and their order are those of SimCLR (Chen et al. 2020) and BYOL (Grill et al. 2020): random resized crop,
mirror, color jitter, gray, Gaussian blur, solarize.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.vision.affine import random_resized_crop
from sft_lightning.data.vision.randaugment import brightness, color, contrast, grayscale, solarize
from sft_lightning.utils.errors import InputError, check_fraction, check_min
from sft_lightning.utils.transfer import to_device

_SIGMA = (0.1, 2.0)  # standard deviation of the blur in pixels
_LOCAL_SCALE = [0.05, 0.4]  # shares of the area that local crops keep (DINO)
_LOCAL_SIDE = 96 / 224  # of the side of the image (DINO)
_THRESHOLD = 0.5  # pixels from here on are inverted by solarization


@dataclass(frozen=True)
class PretrainView:
    """Random changes of a view for self-supervised pre-training. The defaults are those of SimCLR.

    Attributes:
        crop_scale: Smallest and largest share of the area that a random crop keeps; [1.0, 1.0] keeps the image.
        flip: Mirror half of the images left to right. Digits and letters must not be flipped.
        jitter: Share of the images whose brightness, contrast, saturation and hue change.
        brightness: Maximum relative change of the brightness.
        contrast: Maximum relative change of the contrast.
        saturation: Maximum relative change of the saturation; no effect on gray images.
        hue: Maximum shift of the hue in turns, up to 0.5; no effect on gray images.
        gray: Share of the images that lose their color; no effect on gray images.
        blur: Share of the images that are blurred.
        solarize: Share of the images whose bright pixels are inverted.
        side: Side of the view in pixels, such as 96 for a local view of 224-pixel images; null for that of the images.
    """

    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    flip: bool = True
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    gray: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0
    side: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fraction(jitter=self.jitter, gray=self.gray, blur=self.blur, solarize=self.solarize)
        check_min(1, side=self.side)
        check_min(0, brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue)
        if self.hue > 0.5:
            raise InputError(f"hue is {self.hue}: give a number from 0 to 0.5, which is half a turn")
        scale = self.crop_scale
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise InputError(f"crop_scale is {scale}: give two shares of the area such as [0.08, 1.0]")

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        colors = self.jitter * max(self.brightness, self.contrast, self.saturation, self.hue)
        return bool(self.crops or self.flip or colors or self.gray or self.blur or self.solarize)

    @property
    def crops(self) -> bool:
        """Whether crops are smaller than the image."""
        return self.crop_scale[0] < 1


def make_local_view(view: PretrainView, side: int) -> PretrainView:
    """Return the usual local view: smaller crops of a smaller side, with the other changes of another view.

    Args:
        view: View that is not local.
        side: Side of the images in pixels.
    """
    return replace(view, crop_scale=_LOCAL_SCALE, side=max(1, round(side * _LOCAL_SIDE)))


def make_pretrain_view(x: Tensor, view: PretrainView, generator: torch.Generator) -> Tensor:
    """Apply the random changes of a view.

    Args:
        x: Pixels in [0, 1], float of shape (B, C, H, W) with C of 1 or 3.
        view: Changes to apply.
        generator: Random generator on the CPU, so that every device gets the same numbers.

    Returns:
        New images of the same shape, or (B, C, side, side) if the view has a side of its own.
    """
    if view.crops or view.side is not None:
        x = random_resized_crop(x, view.crop_scale, generator, view.side)
    if view.flip:
        x = _change_some(x, 0.5, generator, lambda part: part.flip(-1))
    if view.jitter:
        x = _change_some(x, view.jitter, generator, lambda part: jitter_colors(part, view, generator))
    if x.shape[1] == 3:
        x = _change_some(x, view.gray, generator, lambda part: grayscale(part).expand_as(part))
    x = _change_some(x, view.blur, generator, lambda part: _blur_at_random(part, generator))
    return _change_some(
        x, view.solarize, generator, lambda part: solarize(part, part.new_full((len(part),), _THRESHOLD))
    )


def _change_some(x: Tensor, share: float, generator: torch.Generator, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change each image with a probability."""
    if not share:
        return x
    chosen = (torch.rand(len(x), generator=generator) < share).nonzero()[:, 0]
    if len(chosen) == len(x):
        return change(x)
    if not len(chosen):
        return x
    rows = to_device(chosen, x.device)
    return x.index_copy(0, rows, change(x.index_select(0, rows)))


def jitter_colors(x: Tensor, view: PretrainView, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image by independent amounts, uniform in the ranges.

    The four follow each other in an order that is random for each batch.

    Args:
        x: Pixels in [0, 1], float of shape (B, C, H, W) with C of 1 or 3.
        view: Ranges of the changes.
        generator: Random generator on the CPU.
    """
    ranges = view.brightness, view.contrast, view.saturation, view.hue
    changes = brightness, contrast, color, shift_hue
    amounts = torch.rand(4, len(x), generator=generator)
    for i in torch.randperm(4, generator=generator).tolist():
        if not ranges[i] or (x.shape[1] == 1 and i > 1):
            continue
        if changes[i] is shift_hue:
            amount = (2 * amounts[i] - 1) * view.hue
        else:
            low = max(0.0, 1 - ranges[i])
            amount = low + amounts[i] * (1 + ranges[i] - low)
        x = changes[i](x, to_device(amount, x.device))
    return x


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of images; value and saturation (HSV) stay.

    Args:
        x: Pixels in [0, 1], float of shape (B, 3, H, W).
        shift: Shift of each image in turns, of shape (B,).
    """
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    unit = torch.where(chroma > 0, chroma, 1.0)
    # In sixths of a turn, from red over green to blue.
    of_red, of_green, of_blue = (green - blue) / unit, (blue - red) / unit + 2, (red - green) / unit + 4
    hue = torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue))
    hue = hue + 6 * shift.view(-1, 1, 1)
    distance = [(hue + start).remainder(6) for start in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in distance], 1)


def _blur_at_random(x: Tensor, generator: torch.Generator) -> Tensor:
    sigma = torch.empty(len(x)).uniform_(*_SIGMA, generator=generator)
    return blur_gaussian(x, to_device(sigma, x.device))


def blur_gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images with a Gaussian kernel as wide as a tenth of the shorter side; borders are mirrored.

    Args:
        x: Images, float of shape (B, C, H, W).
        sigma: Standard deviation of each kernel in pixels, of shape (B,).
    """
    reach = max(1, min(x.shape[-2:]) // 20)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    kernel = (-(offsets / sigma[:, None]).square() / 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.dtype)
    if min(x.shape[-2:]) <= reach:
        return x
    count, channels = x.shape[:2]
    weight = kernel.repeat_interleave(channels, 0)  # one group of the convolution for each channel of each image
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded.view(1, count * channels, *padded.shape[2:]), weight[:, None, :, None], groups=len(weight))
    return F.conv2d(rows, weight[:, None, None, :], groups=len(weight)).view_as(x)
