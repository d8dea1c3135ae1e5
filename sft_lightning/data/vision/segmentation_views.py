"""Views of images and their masks, which move together; strong views change colors alone, and may be cut and mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_lightning.data.batches import Cut, Unlabeled
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.modality import seed_view
from sft_lightning.data.vision.masks import IGNORED
from sft_lightning.data.vision.pretrain_views import PretrainView, make_pretrain_view
from sft_lightning.data.vision.views import ImageViews, StrongView, WeakView, draw_moves, make_generator, to_float
from sft_lightning.utils.errors import check_fraction
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.transfer import to_device

_COLORS, _CUT = 3, 5  # numbers of the random streams of a batch; 0 is that of the movements
_CUT_AREA, _CUT_RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # of UniMatch (Yang et al. 2023)


@dataclass(frozen=True)
class ColorView:
    """Changes of colors that a strong view adds to a weak one, pixel by pixel, so that classes stay where they are.

    The defaults are those of UniMatch (Yang et al. 2023), but for CutMix (French et al. 2020), which is off.

    Attributes:
        jitter: Share of the images whose brightness, contrast, saturation and hue change.
        brightness: Maximum relative change of the brightness.
        contrast: Maximum relative change of the contrast.
        saturation: Maximum relative change of the saturation; no effect on gray images.
        hue: Maximum shift of the hue in turns, up to 0.5; no effect on gray images.
        gray: Share of the images that lose their color; no effect on gray images.
        blur: Share of the images that are blurred.
        cutmix: Share of the unlabeled images of which a rectangle of 2 to 40 % of the area comes from another one of
            their batch, together with its pseudo-labels.
    """

    jitter: float = 0.8
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    gray: float = 0.2
    blur: float = 0.5
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fraction(cutmix=self.cutmix)
        _ = self.colors  # refuses the others

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return bool(self.colors or self.cutmix)

    @property
    def colors(self) -> PretrainView:
        """The changes of colors, without any movement."""
        return PretrainView(
            [1.0, 1.0], False, self.jitter, self.brightness, self.contrast, self.saturation, self.hue, self.gray,
            self.blur,
        )  # fmt: skip


class SegmentationViews(ImageViews):
    """Views of images with masks: mappings of `image` and `mask`, or images alone.

    All views of a batch move alike, whatever their number, so that what is computed for a pixel of one view holds for
    the same pixel of another.
    """

    def __init__(self, image_shape: Sequence[int], weak_view: WeakView, color_view: ColorView) -> None:
        """Keep the settings.

        Args:
            image_shape: Shape (C, H, W) of the views.
            weak_view: Movements, which images and masks share.
            color_view: Changes that a strong view adds.
        """
        super().__init__(image_shape, weak_view, StrongView())
        self._colors = color_view

    def prepare(self, raw: Tensor | Mapping[str, Tensor]) -> Inputs:
        """Turn uint8 images into pixels in [0, 1], (B, C, H, W), and masks into int64, (B, H, W)."""
        if isinstance(raw, Tensor):
            return super().prepare(raw)
        return {"image": super().prepare(raw["image"]), "mask": raw["mask"].long()}

    def weak(self, x: Inputs, seed: int | None, number: int = 0) -> Inputs:
        """Move images and masks; what comes in at the borders is black, and not counted."""
        if seed is None or not self._weak:
            return x
        image = x if isinstance(x, Tensor) else x["image"]
        moves = draw_moves(self._weak, len(image), image.shape[-2:], seed)
        if isinstance(x, Tensor):
            return moves.apply(image)
        # Zero is what comes in at the borders: ignored pixels are moved as zeros, too.
        mask = (x["mask"] - IGNORED).to(image.dtype)[:, None]
        return {"image": moves.apply(image), "mask": moves.apply(mask, "nearest")[:, 0].round().long() + IGNORED}

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
            raw: Batch of a training split, without masks.
            wanted: Views to make: `weak_2`, `strong` and `strong_2`; `weak` is made in any case.
        """
        image, seed = to_float(raw.inputs, self._channels, self._side), raw.seed or 0
        inside = torch.zeros(len(image), *image.shape[-2:], dtype=torch.int64, device=image.device)
        moved = self.weak({"image": image, "mask": inside}, raw.seed)
        weak = moved["image"]
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
            outside=moved["mask"] == IGNORED if self._weak else None,
            cut=cut,
            cut_2=cut_2,
        )

    def _make_strong(self, weak: Tensor, seed: int, is_random: bool) -> tuple[Tensor, Cut | None]:
        """Return a strong view of moved images, and the rectangles that it takes from partners."""
        strong = self.change_colors(weak, seed)
        if not (self._colors.cutmix and is_random):
            return strong, None
        drawn = draw_cut(len(weak), weak.shape[-2:], self._colors.cutmix, seed)
        cut = Cut(to_device(drawn.order, weak.device), to_device(drawn.inside, weak.device))
        return cut.paste(strong), cut


def draw_cut(count: int, sides: Sequence[int], share: float, seed: int) -> Cut:
    """Draw rectangles that images get from a partner: CutMix of French et al. 2020, with the areas of UniMatch.

    Args:
        count: Number of images B.
        sides: Height H and width W.
        share: Share of the images that get one.
        seed: Seed of the batch.
    """
    generator = make_generator(seed, _CUT)
    order = torch.randperm(count, generator=generator)
    used = torch.rand(count, generator=generator) < share
    area = torch.empty(count).uniform_(*_CUT_AREA, generator=generator)
    low, high = (torch.tensor(bound).log().item() for bound in _CUT_RATIO)
    ratio = torch.empty(count).uniform_(low, high, generator=generator).exp()
    corner = torch.rand(2, count, generator=generator)
    shape = torch.stack([(area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)])
    is_in = []
    for axis in range(2):
        length = sides[axis]
        size = (shape[axis] * length).round().clamp(1, length)
        start = (corner[axis] * (length - size + 1)).floor().clamp(max=length - 1)
        places = torch.arange(length)
        is_in.append((places >= start[:, None]) & (places < (start + size)[:, None]))
    return Cut(order, is_in[0][:, :, None] & is_in[1][:, None, :] & used[:, None, None])
