"""Predicted masks: a palette PNG and an overlay for each image, at the image's own size, beside the table."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.bad_examples import format_path
from sft_lightning.data.storage import RecordStorage
from sft_lightning.data.vision.decoding import open_image
from sft_lightning.data.vision.images import place_box
from sft_lightning.data.vision.masks import Color, save_mask
from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule
from sft_lightning.training.callbacks.predictions import PredictionWriter, describe_predictions
from sft_lightning.training.callbacks.vision.tiles import classify_tiles
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.transfer import to_device

FOLDER = "predicted_masks"
_DESCRIPTION = "predictions.json"
_STRIP = 2**24  # logits in memory at once
_OPACITY = 0.5  # of the colors over an image
_SAME = ("source", "checkpoint_sha256")


class MaskWriter(PredictionWriter):
    """Writes masks and overlays to `predicted_masks`, and where they are, their confidence and shares to the table.

    A mask is as large as its image, upright as its EXIF says: logits are enlarged before each pixel gets the class of
    the largest. With `predict_tile`, larger images are predicted in squares of that side. `confidence` is the mean over
    the pixels of the probability of their class, `share(CLASS)` the share of the pixels that have the class. Masks of
    another source or checkpoint get another folder, `predicted_masks_N`.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the folder of the masks, equal on all processes."""
        super().on_predict_start(trainer, pl_module)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SegmentationDataModule):
            raise InputError(
                f"predicted masks need a SegmentationDataModule, and the data is {type(data).__name__}: set data to one"
            )
        self._data = data
        chosen = _choose_folder(self._path.parent, trainer) if trainer.is_global_zero else self._path.parent
        self._masks: Path = trainer.strategy.broadcast(chosen)
        split = data.open_predicted()
        self._storage = split.part.storage
        assert isinstance(self._storage, RecordStorage)
        self._position = split.indices
        self._names = _name_files(split.ids)

    def make_columns(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], names: Sequence[Any]
    ) -> dict[str, list[Any]]:
        """Write the masks of a batch, and return their columns."""
        palette, classes = self._data.palette, self._data.class_names
        columns: dict[str, list[Any]] = {name: [] for name in ("path", "mask", "overlay", "confidence")}
        columns |= {f"share({name})": [] for name in classes}
        for name, position, logits in zip(names, prediction["indices"].tolist(), prediction["logits"], strict=True):
            path = self._storage.path_of(self._position[position])
            image = open_image(path, 3, self._data.geometry.background, ranges=self._data.geometry.ranges)
            mask, confidence = self._classify(trainer, pl_module, image, logits)
            file = self._masks / self._names[position]
            file.parent.mkdir(parents=True, exist_ok=True)
            overlay = file.with_name(f"{file.stem}_overlay.jpg")
            try:
                save_mask(file, mask, palette)
                lay_over(image, mask, palette).save(overlay, quality=90)
            except OSError as error:
                raise InputError(
                    f"{str(file)!r} cannot be written ({error.strerror or error}): free space or fix the permissions"
                ) from error
            shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
            row = [name, *(one.relative_to(self._path.parent).as_posix() for one in (file, overlay))]
            row += [f"{confidence:.6f}", *(f"{share:.6f}" for share in shares)]
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


def classify_pixels(
    logits: Tensor, sides: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[npt.NDArray[np.int16], float]:
    """Return the class of each pixel of an original, and the mean probability of these classes.

    Logits are enlarged bilinearly, as by `F.interpolate`, a strip of rows after the other, so that large images take
    little memory.

    Args:
        logits: Logits of a square image, (C, S, S).
        sides: Width and height of the original in pixels.
        box: Part of the original that the square image shows, as `Geometry.box` gives it.

    Returns:
        Classes, int16, (height, width), and the mean probability.
    """
    (width, height), count = sides, len(logits)
    _, columns, rows = place_box(sides, logits.shape[-1], box)
    inside = logits[None, :, rows[0] : rows[1], columns[0] : columns[1]]
    across = (2 * torch.arange(width, device=logits.device) + 1) / width - 1
    mask, total = np.empty((height, width), dtype=np.int16), 0.0
    step = max(1, _STRIP // (count * width))
    for start in range(0, height, step):
        stop = min(height, start + step)
        down = (2 * torch.arange(start, stop, device=logits.device) + 1) / height - 1
        grid = torch.stack([across.expand(len(down), -1), down[:, None].expand(-1, width)], -1)[None]
        strip = F.grid_sample(inside, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        certainty, predicted = strip.softmax(0).max(0)
        mask[start:stop] = predicted.to(torch.int16).cpu().numpy()
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


def _choose_folder(folder: Path, trainer: Trainer) -> Path:
    """Return the folder of masks of the same source and checkpoint, or a new one."""
    about = describe_predictions(trainer)
    for k in count():
        chosen = folder / (f"{FOLDER}_{k}" if k else FOLDER)
        try:
            old = json.loads((chosen / _DESCRIPTION).read_text(encoding="utf-8")) if chosen.exists() else about
        except (OSError, ValueError):
            continue
        if isinstance(old, dict) and all(old.get(key) == about[key] for key in _SAME):
            chosen.mkdir(parents=True, exist_ok=True)
            write_json(chosen / _DESCRIPTION, about)
            return chosen
    raise AssertionError


def _name_files(ids: Sequence[str]) -> list[str]:
    """Return a file for the mask of each image: its name with another extension, or an added one where two collide."""
    plain = [format_path(name).replace("\\", "/").lstrip("/").replace("../", "") for name in ids]
    stems = [str(Path(name).with_suffix("")) for name in plain]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len({*stems}) < len(stems) else set()
    return [f"{name if stem in twice else stem}.png" for name, stem in zip(plain, stems, strict=True)]
