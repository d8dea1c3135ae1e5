"""Predicted boxes in pixels of their images: a table, the form of COCO's results, and images with boxes if wanted."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sft_lightning.data.vision.box_sources import BoxSource
from sft_lightning.data.vision.detection_datamodule import DetectionDataModule
from sft_lightning.data.vision.masks import Color, make_palette
from sft_lightning.data.vision.write_boxes import format_bbox
from sft_lightning.training.callbacks.vision.pixel_predictions import PixelWriter, explain_write_errors
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.spreadsheet import restore_cell

COCO_RESULTS = "predictions_coco.json"
COLUMNS = ("path", "class", "x1", "y1", "x2", "y2", "score")
_WHITE: Color = (255, 255, 255)


class BoxWriter(PixelWriter):
    """Writes one row for each detected object, with its class, corners in pixels of the upright image, and score.

    An image without a detection has a row without a class, as in a table of annotations.
    `predictions_coco.json` holds the same as COCO's results: a list of `image_id`, `file_name`, `category_id`,
    `category`, `bbox` (x, y, width, height) and `score`. Of a source of COCO, both numbers are those of its JSON; other
    images have their position in the table, and classes are numbered from 1 on, as `convert-boxes` does. With several
    processes, rows of different images take turns.

    Where `drawn_score` of the model is set, images with the boxes of at least that score are in `predicted_boxes`.
    """

    folder_name: ClassVar[str] = "predicted_boxes"
    data_kind = DetectionDataModule
    _data: DetectionDataModule

    def needs_folder(self, pl_module: LightningModule) -> bool:
        """Return whether boxes are drawn."""
        return getattr(pl_module, "drawn_score", None) is not None

    def make_columns(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], names: Sequence[Any]
    ) -> dict[str, list[Any]]:
        """Return the rows of a batch, and draw its boxes if wanted."""
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        positions, classes = prediction["indices"], self._data.class_names
        found = self._data.original_boxes(self._split, positions, prediction["boxes"].double().cpu())
        lists = (found, prediction["classes"].cpu(), prediction["scores"].cpu())
        for name, position, boxes, numbers, scores in zip(names, positions.tolist(), *lists, strict=True):
            boxes, numbers, scores = drop_padding(boxes, numbers, scores)
            for row in list_rows(name, boxes, numbers, scores, classes):
                for column, cell in zip(columns.values(), row, strict=True):
                    column.append(cell)
            if self.needs_folder(pl_module):
                shown = scores >= float(pl_module.drawn_score)  # type: ignore[arg-type]
                file = self.make_path(position).with_suffix(".jpg")
                drawn = draw_found(self.open_original(position), boxes[shown], numbers[shown], scores[shown], classes)
                with explain_write_errors(file):
                    drawn.save(file, quality=90)
        return columns

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the rows of all processes, and write them as COCO's results, too."""
        is_open = self._file is not None
        super().on_predict_end(trainer, pl_module)
        if is_open and trainer.is_global_zero:
            numbers, ids = {name: k + 1 for k, name in enumerate(self._data.class_names)}, {}
            if self._data.predict_source is None and isinstance(source := self._data.opened_source, BoxSource):
                numbers, ids = numbers | source.category_ids, source.image_ids
            write_results(_read_rows(self._path), self._path.with_name(COCO_RESULTS), numbers, ids)


def drop_padding(boxes: Tensor, numbers: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the detections of an image without rows that fill up, and those beside the image alone.

    Args:
        boxes: Corners in pixels of the image, (K, 4).
        numbers: Classes, int64, (K,); -1 in rows that fill up.
        scores: Scores, (K,).
    """
    kept = (numbers >= 0) & (boxes[:, 2:] - boxes[:, :2] >= 0.01).all(1)
    return boxes[kept], numbers[kept], scores[kept]


def list_rows(
    name: str, boxes: Tensor, numbers: Tensor, scores: Tensor, class_names: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the rows of an image in a table with the columns `COLUMNS`, one without a class where nothing is found.

    Args:
        name: Name of the image.
        boxes: Corners in pixels of the image, (K, 4).
        numbers: Classes, int64, (K,).
        scores: Scores, (K,).
        class_names: Names of the classes.
    """
    rows = [
        (name, class_names[number], *(f"{corner:.2f}" for corner in box), f"{score:.6f}")
        for box, number, score in zip(boxes.tolist(), numbers.tolist(), scores.tolist(), strict=True)
    ]
    return rows or [(name, *[""] * (len(COLUMNS) - 1))]


def write_results(
    rows: Iterable[Sequence[str]], path: Path, categories: Mapping[str, int], image_ids: Mapping[str, int | str]
) -> None:
    """Write rows of a table of detections as COCO's results, one after the other.

    Args:
        rows: Rows with the cells `COLUMNS`.
        path: Path of the JSON.
        categories: Number of each class.
        image_ids: Number of each image; others have their position among the images of the rows.
    """
    positions: dict[str, int] = {}
    with explain_write_errors(path), open_atomic(path) as staged, staged.open("w", encoding="utf-8") as file:
        file.write("[")
        end = ""
        for name, kind, *corners, score in rows:
            position = positions.setdefault(name, len(positions))
            if not kind:
                continue
            result = {
                "image_id": image_ids.get(name, position),
                "file_name": name,
                "category_id": categories[kind],
                "category": kind,
                "bbox": format_bbox(np.array([*map(float, corners)])),
                "score": float(score),
            }
            file.write(f"{end}\n{json.dumps(result)}")
            end = ","
        file.write("\n]\n")


def _read_rows(table: Path) -> Iterator[list[str]]:
    """Yield the rows of a table of detections, names as they were before they became cells."""
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells = [row.get(column) or "" for column in COLUMNS]
            yield [*map(restore_cell, cells[:2]), *cells[2:]]


def draw_boxes(image: Image.Image, boxes: Tensor, classes: Tensor, labels: Sequence[str], side: int = 0) -> Image.Image:
    """Return an image with boxes, each in the color of its class and with a label.

    Args:
        image: RGB image.
        boxes: Corners in pixels of the image, (N, 4).
        classes: Class of each box, int64, (N,).
        labels: Text of each box.
        side: Longer side up to which a small image is enlarged, in pixels.
    """
    drawn, scale = image.convert("RGB"), max(1, round(side / max(image.size)))
    drawn = drawn.resize((scale * drawn.width, scale * drawn.height), Image.Resampling.NEAREST)
    boxes = boxes * scale
    pen, width = ImageDraw.Draw(drawn), max(1, round(max(drawn.size) / 300))
    font = ImageFont.load_default(max(10, round(max(drawn.size) / 50)))
    most = int(classes.max()) + 2 if len(classes) else 1
    palette = make_palette(most, {})[1:]  # without black, that of class 0 among masks
    for box, number, label in reversed(list(zip(boxes.tolist(), classes.tolist(), labels, strict=True))):
        x1, y1, x2, y2 = box
        color = palette[number]
        pen.rectangle((x1, y1, x2, y2), outline=color, width=width)
        _, _, right, bottom = pen.textbbox((0, 0), label, font=font)
        top = max(0.0, y1 - bottom - 2)
        pen.rectangle((x1, top, x1 + right + 3, top + bottom + 2), fill=color)
        pen.text((x1 + 2, top), label, fill=_WHITE if sum(color) < 384 else (0, 0, 0), font=font)
    return drawn


def draw_found(
    image: Image.Image, boxes: Tensor, numbers: Tensor, scores: Tensor, class_names: Sequence[str], side: int = 0
) -> Image.Image:
    """Return an image with detections, each with its class and score.

    Args:
        image: RGB image.
        boxes: Corners in pixels of the image, (K, 4).
        numbers: Classes, int64, (K,).
        scores: Scores, (K,).
        class_names: Names of the classes.
        side: Longer side up to which a small image is enlarged, in pixels.
    """
    pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
    return draw_boxes(image, boxes, numbers, [f"{class_names[k]} {score:.2f}" for k, score in pairs], side)


def to_pixels(x: Tensor) -> Image.Image:
    """Return an image of a network's inputs.

    Args:
        x: Pixels in [0, 1], (C, H, W).
    """
    pixels = (x.expand(3, -1, -1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())
