"""Heat maps of anomaly scores: an overlay for each image, at the image's own size, beside the table."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from sft_lightning.data.vision.anomaly_datamodule import AnomalyDataModule
from sft_lightning.training.callbacks.vision.pixel_predictions import (
    PixelWriter,
    enlarge_in_strips,
    explain_write_errors,
)

_OPACITY = 0.7  # of the color of the highest scores
_HOT = 1.5  # score at which the colors end, in units of the highest place of a typical normal image
_COLORS = np.array([[255, 230, 0], [255, 110, 0], [200, 0, 40]], dtype=np.float32)  # yellow, orange, red


class HeatMapWriter(PixelWriter):
    """Writes overlays to `heat_maps`, and scores, decisions and where the overlays are to the table.

    Colors begin (yellow) at the highest score of a place in a typical normal image, the median of held-out ones, and
    end (red) at one and a half of it. They mean the same in every image, and half of the normal ones have none.
    Overlays of another source or checkpoint get another folder, `heat_maps_N`.
    """

    folder_name: ClassVar[str] = "heat_maps"
    data_kind = AnomalyDataModule

    def make_columns(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], names: Sequence[Any]
    ) -> dict[str, list[Any]]:
        """Write the overlays of a batch, and return their columns."""
        maps, rest = prediction["map"], {name: value for name, value in prediction.items() if name != "map"}
        columns = super().make_columns(trainer, pl_module, rest, names)
        columns["heat_map"] = []
        for position, own in zip(prediction["indices"].tolist(), maps, strict=True):
            image = self.open_original(position)
            box = self._data.geometry.box(*image.size, None)
            file = self.make_path(position).with_suffix(".jpg")
            with explain_write_errors(file):
                lay_heat_over(image, own, box).save(file, quality=90)
            columns["heat_map"].append(self.name_in_table(file))
        return columns


def lay_heat_over(image: Image.Image, scores: Tensor, box: tuple[float, float, float, float]) -> Image.Image:
    """Lay the colors of a map of scores over its image.

    Args:
        image: RGB image.
        scores: Scores of a square image in units of the highest place of a typical normal one, (S, S).
        box: Part of the image that the square one shows, as `Geometry.box` gives it.
    """
    made = np.array(image)
    for start, stop, strip in enlarge_in_strips(scores[None].float(), image.size, box):
        made[start:stop] = color_scores(made[start:stop].astype(np.float32), strip[0]).round()
    return Image.fromarray(made)


def color_scores(pixels: npt.NDArray[np.float32], scores: Tensor) -> npt.NDArray[np.float32]:
    """Lay the color of the score of each place over its pixel, with an opacity that grows quickly from 0.

    Args:
        pixels: RGB image, float32, (H, W, 3), 0 to 255.
        scores: Scores in units of the highest place of a typical normal image, (H, W).
    """
    heat = ((scores.float() - 1) / (_HOT - 1)).clamp(0, 1).cpu().numpy()
    steps = np.linspace(0, 1, len(_COLORS))
    colors = np.stack([np.interp(heat, steps, _COLORS[:, k]) for k in range(3)], -1).astype(np.float32)
    opacity = (_OPACITY * np.minimum(1, 3 * heat)).astype(np.float32)
    made: npt.NDArray[np.float32] = pixels + opacity[..., None] * (colors - pixels)
    return made
