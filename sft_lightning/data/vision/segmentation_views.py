"""Views of images and their masks, which move together; strong views change colors alone, and may be cut and mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_lightning.data.batches import Cut
from sft_lightning.data.vision.color_views import ColorChanges, ColoredViews, draw_rectangles
from sft_lightning.data.vision.masks import IGNORED
from sft_lightning.data.vision.views import WeakView, draw_moves, make_generator
from sft_lightning.utils.errors import check_fraction
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.transfer import to_device

_CUT = 5  # number of the random stream of a batch
_CUT_AREA = (0.02, 0.4)  # of UniMatch (Yang et al. 2023)


@dataclass(frozen=True)
class ColorView(ColorChanges):
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

    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fraction(cutmix=self.cutmix)
        super().__post_init__()

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return bool(self.colors or self.cutmix)


class SegmentationViews(ColoredViews):
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
        super().__init__(image_shape, weak_view, color_view)
        self._cutmix = color_view.cutmix

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

    def _make_strong(self, weak: Tensor, seed: int, is_random: bool) -> tuple[Tensor, Cut | None]:
        strong = self.change_colors(weak, seed)
        if not (self._cutmix and is_random):
            return strong, None
        drawn = draw_cut(len(weak), weak.shape[-2:], self._cutmix, seed)
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
    return Cut(order, draw_rectangles(count, sides, _CUT_AREA, generator) & used[:, None, None])
