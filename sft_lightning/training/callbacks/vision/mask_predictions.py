"""Predicted masks: a palette PNG and an overlay for each image, at the image's own size, beside the table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from sft_lightning.data.vision.masks import Color, save_mask
from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule
from sft_lightning.training.callbacks.vision.pixel_predictions import (
    PixelWriter,
    enlarge_in_strips,
    explain_write_errors,
)
from sft_lightning.training.callbacks.vision.tiles import classify_tiles
from sft_lightning.utils.transfer import to_device

_OPACITY = 0.5  # of the colors over an image


class MaskWriter(PixelWriter):
    """Writes masks and overlays to `predicted_masks`, and where they are, their confidence and shares to the table.

    A mask is as large as its image, upright as its EXIF says: logits are enlarged before each pixel gets the class of
    the largest. With `predict_tile`, larger images are predicted in squares of that side. `confidence` is the mean over
    the pixels of the probability of their class, `share(CLASS)` the share of the pixels that have the class. Masks of
    another source or checkpoint get another folder, `predicted_masks_N`.
    """

    folder_name: ClassVar[str] = "predicted_masks"
    data_kind = SegmentationDataModule
    _data: SegmentationDataModule

    def make_columns(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], names: Sequence[Any]
    ) -> dict[str, list[Any]]:
        """Write the masks of a batch, and return their columns."""
        palette, classes = self._data.palette, self._data.class_names
        columns: dict[str, list[Any]] = {name: [] for name in ("path", "mask", "overlay", "confidence")}
        columns |= {f"share({name})": [] for name in classes}
        for name, position, logits in zip(names, prediction["indices"].tolist(), prediction["logits"], strict=True):
            image = self.open_original(position)
            mask, confidence = self._classify(trainer, pl_module, image, logits)
            file = self.make_path(position)
            overlay = write_mask(file, image, mask, palette)
            row = [name, *map(self.name_in_table, (file, overlay)), f"{confidence:.6f}", *format_shares(mask, classes)]
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
        return columns

    def _classify(
        self, trainer: Trainer, pl_module: Any, image: Image.Image, logits: Tensor
    ) -> tuple[npt.NDArray[np.int16], float]:
        """Return the class of each pixel of an image and their mean probability: in squares where it is larger."""
        data, geometry, tile = self._data, self._data.geometry, self._data.predict_tile
        if tile is None or max(image.size) <= tile:
            return classify_pixels(logits, image.size, geometry.box(*image.size, None))
        plugin = trainer.precision_plugin

        def compute(pixels: Tensor) -> Tensor:
            with torch.no_grad(), plugin.forward_context():
                x = plugin.convert_input(data.views.prepare(to_device(pixels, pl_module.device)))
                outputs: Tensor = pl_module.evaluated(x)[1]
            return outputs.float().cpu()

        image = image if geometry.channels == 3 else image.convert("L")
        return classify_tiles(compute, image, tile, geometry.size, geometry.background, data.eval_batch_size)


def write_mask(file: Path, image: Image.Image, mask: npt.NDArray[np.int16], palette: Sequence[Color]) -> Path:
    """Write a mask as a palette PNG, and its image under its colors beside it, whose path is returned.

    Args:
        file: Path of the PNG.
        image: Image at its own size, RGB.
        mask: Numbers of classes, (H, W).
        palette: Color of each class.

    Raises:
        InputError: A file cannot be written.
    """
    overlay = file.with_name(f"{file.stem}_overlay.jpg")
    with explain_write_errors(file):
        save_mask(file, mask, palette)
        lay_over(image, mask, palette).save(overlay, quality=90)
    return overlay


def format_shares(mask: npt.NDArray[np.int16], classes: Sequence[str]) -> list[str]:
    """Return the share of the pixels of each class.

    Args:
        mask: Numbers of classes, (H, W).
        classes: Names of the classes.
    """
    return [f"{share:.6f}" for share in np.bincount(mask.ravel(), minlength=len(classes)) / mask.size]


def classify_pixels(
    logits: Tensor, sides: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[npt.NDArray[np.int16], float]:
    """Return the class of each pixel of an original, and the mean probability of these classes.

    Args:
        logits: Logits of a square image, (C, S, S).
        sides: Width and height of the original in pixels.
        box: Part of the original that the square image shows, as `Geometry.box` gives it.

    Returns:
        Classes, int16, (height, width), and the mean probability.
    """
    mask, total = np.empty(sides[::-1], dtype=np.int16), 0.0
    for start, stop, strip in enlarge_in_strips(logits, sides, box):
        certainty, predicted = strip.softmax(0).max(0)
        mask[start:stop] = predicted.short().cpu().numpy()
        total += float(certainty.double().sum())
    return mask, total / mask.size


def lay_over(
    image: Image.Image | npt.NDArray[np.uint8], mask: npt.NDArray[np.int16], palette: Sequence[Color]
) -> Image.Image:
    """Lay the colors of a mask over its image.

    Args:
        image: RGB image, or its pixels, (H, W, 3).
        mask: Numbers of classes, int, (H, W); -1 stands for the last color.
        palette: Color of each class.
    """
    colors = np.array(palette, dtype=np.float32)[mask]
    mixed = (1 - _OPACITY) * np.asarray(image, dtype=np.float32) + _OPACITY * colors
    return Image.fromarray(mixed.round().astype(np.uint8))
