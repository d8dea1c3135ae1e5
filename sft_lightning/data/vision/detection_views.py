"""Views of images and their boxes, which move together; strong views change colors and cover patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sft_lightning.data.vision.boxes import move_boxes
from sft_lightning.data.vision.color_views import ColorChanges, ColoredViews, draw_rectangles
from sft_lightning.data.vision.masks import make_palette
from sft_lightning.data.vision.views import WeakView, draw_moves, make_generator
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.transfer import to_device

_PATCHES = 6  # number of the random stream of a batch
_GRAY = 0.5  # color of covered patches


@dataclass(frozen=True)
class PatchView(ColorChanges):
    """Changes of colors and covered patches that a strong view adds to a weak one, so that objects stay in place.

    The defaults are about those of Unbiased Teacher (Liu et al. 2021).

    Attributes:
        jitter: Share of the images whose brightness, contrast, saturation and hue change.
        brightness: Maximum relative change of the brightness.
        contrast: Maximum relative change of the contrast.
        saturation: Maximum relative change of the saturation; no effect on gray images.
        hue: Maximum shift of the hue in turns, up to 0.5; no effect on gray images.
        gray: Share of the images that lose their color; no effect on gray images.
        blur: Share of the images that are blurred.
        patches: Number of rectangles of each image that are covered with gray (Cutout, DeVries & Taylor 2017).
        patch_area: Smallest and largest share of the area of an image that one of them covers.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    patches: int = 2
    patch_area: list[float] = field(default_factory=lambda: [0.02, 0.1])

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_min(0, patches=self.patches)
        area = self.patch_area
        if not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            raise InputError(f"patch_area is {area}: give two shares of the area such as [0.02, 0.1]")
        super().__post_init__()

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return bool(self.colors or self.patches)


class DetectionViews(ColoredViews):
    """Views of images with boxes: mappings of `image` and `boxes`, or images alone.

    All views of a batch move alike, so that a box that is found in one view is right in another.
    """

    def __init__(
        self, image_shape: Sequence[int], weak_view: WeakView, patch_view: PatchView, min_visible: float
    ) -> None:
        """Keep the settings.

        Args:
            image_shape: Shape (C, H, W) of the views.
            weak_view: Movements, which images and boxes share.
            patch_view: Changes that a strong view adds.
            min_visible: Smallest share of the area of an object that has to stay in the image.

        Raises:
            InputError: The weak view rotates or shears, under which boxes are not exact.
        """
        for name, value in (("rotation", weak_view.rotation), ("shear", weak_view.shear)):
            if value:
                raise InputError(
                    f"weak_view has {name} {value}, under which a box no more fits its object: set it to 0, and use "
                    "flip, translation, scale or crop_scale"
                )
        super().__init__(image_shape, weak_view, patch_view)
        self._patches, self._area, self._least = patch_view.patches, patch_view.patch_area, min_visible

    def prepare(self, raw: Tensor | Mapping[str, Tensor]) -> Inputs:
        """Turn uint8 images into pixels in [0, 1], (B, C, H, W); boxes stay as they are."""
        if isinstance(raw, Tensor):
            return super().prepare(raw)
        return {"image": super().prepare(raw["image"]), "boxes": raw["boxes"]}

    def weak(self, x: Inputs, seed: int | None, number: int = 0) -> Inputs:
        """Move images and boxes; what comes in at the borders is black."""
        if seed is None or not self._weak:
            return x
        image = x if isinstance(x, Tensor) else x["image"]
        moves = draw_moves(self._weak, len(image), image.shape[-2:], seed)
        if isinstance(x, Tensor):
            return moves.apply(image)
        boxes = move_boxes(x["boxes"], moves, image.shape[-2:], self._least)
        return {"image": moves.apply(image), "boxes": boxes}

    def show(self, x: Inputs) -> Tensor:
        """Return the images, with the boxes drawn in the color of their class where there are some."""
        if isinstance(x, Tensor):
            return super().show(x)
        return draw_frames(super().show(x["image"]), x["boxes"])

    def change_colors(self, image: Tensor, seed: int) -> Tensor:
        """Change the colors of images, and cover patches."""
        changed = super().change_colors(image, seed)
        if not self._patches:
            return changed
        generator, sides = make_generator(seed, _PATCHES), image.shape[-2:]
        covered = torch.zeros(len(image), *sides, dtype=torch.bool)
        for _ in range(self._patches):
            covered |= draw_rectangles(len(image), sides, self._area, generator)
        return changed.masked_fill(to_device(covered, image.device)[:, None], _GRAY)


def draw_frames(images: Tensor, y: Tensor) -> Tensor:
    """Return images with the borders of boxes drawn, one pixel wide, in a color for each class, or white on gray.

    Args:
        images: Pixels in [0, 1], (B, C, H, W).
        y: Targets, (B, M, 6).
    """
    drawn, (height, width) = images.clone(), images.shape[-2:]
    palette = make_palette(int(y[:, :, 0].max().clamp(min=0)) + 2, {})[1:]  # without black
    for image, rows in zip(drawn, y.tolist(), strict=True):
        for number, x1, y1, x2, y2, _ in rows:
            if number >= 0:
                left, right = (min(max(round(v), 0), width - 1) for v in (x1, x2 - 1))
                top, bottom = (min(max(round(v), 0), height - 1) for v in (y1, y2 - 1))
                color = (
                    images.new_tensor(palette[int(number)])[:, None] / 255 if len(image) == 3 else images.new_ones(1, 1)
                )
                image[:, [top, bottom], left : right + 1] = color[:, :, None]
                image[:, top : bottom + 1, [left, right]] = color[:, :, None]
    return drawn
