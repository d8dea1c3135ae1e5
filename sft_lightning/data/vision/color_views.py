"""Views whose strong ones change colors alone, so that what is found in a weak view is in the same place in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_lightning.data.batches import Cut, Unlabeled
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.modality import seed_view
from sft_lightning.data.vision.pretrain_views import PretrainView, make_pretrain_view
from sft_lightning.data.vision.views import ImageViews, StrongView, WeakView, draw_moves, make_generator, to_float
from sft_lightning.utils.inputs import Inputs

_COLORS = 3  # number of the random stream of a batch; 0 is that of the movements
_RATIO = (0.3, 1 / 0.3)  # of the sides of random rectangles


@dataclass(frozen=True)
class ColorChanges:
    """Changes of colors that a strong view adds to a weak one, pixel by pixel.

    Attributes:
        jitter: Share of the images whose brightness, contrast, saturation and hue change.
        brightness: Maximum relative change of the brightness.
        contrast: Maximum relative change of the contrast.
        saturation: Maximum relative change of the saturation; no effect on gray images.
        hue: Maximum shift of the hue in turns, up to 0.5; no effect on gray images.
        gray: Share of the images that lose their color; no effect on gray images.
        blur: Share of the images that are blurred.
    """

    jitter: float = 0.8
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    gray: float = 0.2
    blur: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _ = self.colors

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return bool(self.colors)

    @property
    def colors(self) -> PretrainView:
        """The changes of colors, without any movement."""
        return PretrainView(
            [1.0, 1.0], False, self.jitter, self.brightness, self.contrast, self.saturation, self.hue, self.gray,
            self.blur,
        )  # fmt: skip


class ColoredViews(ImageViews):
    """Views of images alone, or with what is in certain places of them; all views of a batch move alike."""

    def __init__(self, image_shape: Sequence[int], weak_view: WeakView, color_view: ColorChanges) -> None:
        """Keep the settings.

        Args:
            image_shape: Shape (C, H, W) of the views.
            weak_view: Movements, which images and what is in them share.
            color_view: Changes that a strong view adds.
        """
        super().__init__(image_shape, weak_view, StrongView())
        self._colors = color_view

    def strong(self, x: Inputs, seed: int) -> Inputs:
        """Move like the weak view of the same seed, and change the colors."""
        moved = self.weak(x, seed)
        if isinstance(moved, Tensor):
            return self.change_colors(moved, seed)
        return {**moved, "image": self.change_colors(moved["image"], seed)}

    def change_colors(self, image: Tensor, seed: int) -> Tensor:
        """Change the colors of images.

        Args:
            image: Pixels in [0, 1], (B, C, H, W).
            seed: Seed of the view.
        """
        view = self._colors.colors
        return make_pretrain_view(image, view, make_generator(seed, _COLORS)).clamp(0, 1) if view else image

    @property
    def has_strong(self) -> bool:
        """Whether the settings of the strong view change anything."""
        return bool(self._colors)

    def make_unlabeled(self, raw: RawBatch, wanted: Sequence[str]) -> Unlabeled:
        """Make the views of unlabeled images, all of which move alike.

        Args:
            raw: Batch of a training split, of images alone.
            wanted: Views to make: `weak_2`, `strong` and `strong_2`; `weak` is made in any case.
        """
        weak, seed = to_float(raw.inputs, self._channels, self._side), raw.seed or 0
        outside = torch.zeros(len(weak), *weak.shape[-2:], dtype=torch.bool, device=weak.device)
        if raw.seed is not None and self._weak:
            moves = draw_moves(self._weak, len(weak), weak.shape[-2:], seed)
            weak = moves.apply(weak)
            outside = moves.apply((~outside).to(weak.dtype)[:, None], "nearest")[:, 0] == 0
        (strong, cut), (strong_2, cut_2) = (
            self._make_strong(weak, one, raw.seed is not None) if name in wanted else (None, None)
            for name, one in (("strong", seed), ("strong_2", seed_view(seed, 1)))
        )
        return Unlabeled(
            weak,
            raw.indices,
            seed,
            weak if "weak_2" in wanted else None,
            strong,
            strong_2,
            outside=outside if self._weak else None,
            cut=cut,
            cut_2=cut_2,
        )

    def _make_strong(self, weak: Tensor, seed: int, is_random: bool) -> tuple[Tensor, Cut | None]:
        """Return a strong view of moved images, and the rectangles that it takes from partners, if any."""
        return self.change_colors(weak, seed), None


def draw_rectangles(count: int, sides: Sequence[int], area: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw a rectangle inside each image, boolean, (B, H, W).

    Args:
        count: Number of images B.
        sides: Height H and width W.
        area: Smallest and largest share of the area of an image.
        generator: Random generator on the CPU.
    """
    share = torch.empty(count).uniform_(area[0], area[1], generator=generator)
    low, high = (torch.tensor(bound).log().item() for bound in _RATIO)
    ratio = torch.empty(count).uniform_(low, high, generator=generator).exp()
    corner = torch.rand(2, count, generator=generator)
    shape = torch.stack([(share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)])
    is_in = []
    for axis in range(2):
        length = sides[axis]
        size = (shape[axis] * length).round().clamp(1, length)
        start = (corner[axis] * (length - size + 1)).floor().clamp(max=length - 1)
        places = torch.arange(length)
        is_in.append((places >= start[:, None]) & (places < (start + size)[:, None]))
    return is_in[0][:, :, None] & is_in[1][:, None, :]
