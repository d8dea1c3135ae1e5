"""Source of images with outlines of objects in COCO's JSON."""

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.data.file_groups import group_files
from sft_lightning.data.source import SPLITS, Examples, relative
from sft_lightning.data.vision.coco_entries import name_annotation, read_field, refuse_value
from sft_lightning.data.vision.coco_files import CocoFiles, ListedImage
from sft_lightning.data.vision.mask_sources import MaskSource, make_labels
from sft_lightning.data.vision.outlined_images import BACKGROUND, OutlinedImages, make_outline_coding, refuse_colors
from sft_lightning.data.vision.outlines import Outlines, Shape, decode_runs


class CocoSource(MaskSource):
    """Masks drawn from COCO annotations, with files as `CocoFiles` finds them.

    An image that a JSON lists without an object shows background alone; images beside the listed ones of `train` are
    unlabeled.
    """

    def __init__(
        self,
        path: Path,
        root: str = "data",
        class_names: Sequence[str] | None = None,
        class_colors: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Read the annotations; no image is read.

        Args:
            path: Path of the JSON or the folder.
            root: Second folder that the images of one JSON may be in.
            class_names: Names of the classes in the order of their numbers; None for background and the categories.
            class_colors: None; polygons have no colors.

        Raises:
            InputError: A JSON is damaged, or its images are in none of the folders.
        """
        self.path, self.name = path, str(path)
        refuse_colors(self.name, class_colors)
        self._coco = CocoFiles(path, root)
        self.messages = self._coco.messages
        self.coding = make_outline_coding(path, self._coco.class_names, class_names)
        self.class_names = self.coding.class_names
        numbers = {number: self.class_names.index(name) for number, name in self._coco.categories.items()}
        background = self.class_names.index(BACKGROUND)
        self._parts: dict[str, list[tuple[Path, Outlines | None]]] = {
            split: [(image.path, _read_objects(image, numbers, background)) for image in listed]
            for split, listed in self._coco.listed.items()
        }
        if "train" in self._parts:
            self._parts["unlabeled"] = [(path, None) for path in self._coco.others]

    @property
    def masks(self) -> list[Path]:
        """Paths of the JSON files."""
        return [*self._coco.files.values()]

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        parts = {}
        for split in SPLITS:
            if pairs := self._parts.get(split):
                paths = [path for path, _ in pairs]
                masks = [None if outlines is None else self._coco.files[split] for _, outlines in pairs]
                ids = [relative(path, self._coco.folder) for path in paths]
                stored = OutlinedImages(paths, ids, masks, self.coding, [outlines for _, outlines in pairs])
                parts[split] = Examples(stored, ids, make_labels(masks))
        return group_files(self, self._coco.folder, parts)


def _read_objects(image: ListedImage, numbers: Mapping[int, int], rest: int) -> Outlines:
    if image.sides is None:
        return Outlines((), rest, (1, 1), "the JSON does not state its width and height")
    shapes = []
    for one in image.annotations:
        try:
            shapes.append(_read_shape(one, numbers))
        except ValueError as error:
            return Outlines((), rest, image.sides, f"{name_annotation(one)}: {error}")
    return Outlines(tuple(shapes), rest, image.sides)


def _read_shape(one: Mapping[str, Any], numbers: Mapping[int, int]) -> Shape:
    segmentation = one.get("segmentation")
    if one["category_id"] not in numbers:
        raise ValueError(f"it has the category {one['category_id']}, which categories does not list")
    number = numbers[one["category_id"]]
    if isinstance(segmentation, dict):
        counts = read_field(segmentation, "counts", "its segmentation", "run lengths")
        runs = tuple(decode_runs(counts) if isinstance(counts, str) else counts if isinstance(counts, list) else (-1,))
        if not all(isinstance(run, int) and run >= 0 for run in runs):
            raise refuse_value("counts", counts, "its segmentation", "whole numbers from 0 on")
        return Shape(number, runs=runs)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            "it has a box alone, and masks need polygons or run lengths in `segmentation`: use DetectionDataModule for "
            "boxes"
        )
    try:
        rings = tuple(array("d", map(float, ring)) for ring in segmentation)
    except (TypeError, ValueError, OverflowError) as error:
        what = "polygons, each of which is [x1, y1, x2, y2, x3, y3, ...]"
        raise refuse_value("segmentation", segmentation, "it", what) from error
    if any(len(ring) < 6 or len(ring) % 2 or not all(map(math.isfinite, ring)) for ring in rings):
        raise ValueError("a polygon has fewer than three points, or half a point")
    return Shape(number, rings)
