"""Source of images with polygons in text files, as YOLO reads them."""

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.vision.mask_sources import MaskFolder
from sft_lightning.data.vision.outlined_images import BACKGROUND, OutlinedImages, make_outline_coding, refuse_colors
from sft_lightning.data.vision.outlines import Outlines, Shape
from sft_lightning.data.vision.yolo_files import list_label_files, read_yolo_names


class YoloFolder(MaskFolder):
    """Folder with `images` and `labels`, text files of the same names with a polygon a line: class x1 y1 x2 y2 ...

    Coordinates are shares of the image's sides. An image without a file is unlabeled, one with an empty file shows
    background alone. Splits lie as in `MaskFolder`; names of classes are in `data.yaml`, or in `classes.txt`.
    """

    targets: ClassVar[str] = "labels"

    def list_targets(self, folder: Path) -> dict[str, list[Path]]:
        """Return the text files by their names without extension."""
        return list_label_files(folder)

    def use_classes(
        self,
        folder: Path,
        class_names: Sequence[str] | None,
        class_colors: Mapping[str, Sequence[int]] | None,
        ignore_index: int,
    ) -> None:
        """Read the names of the classes."""
        refuse_colors(self.name, class_colors)
        self._names = read_yolo_names(folder)
        self.coding = make_outline_coding(folder, self._names, class_names)
        self.class_names = self.coding.class_names

    def make_storage(self, paths: list[Path], ids: list[str], masks: list[Path | None]) -> OutlinedImages:
        """Read the polygons."""
        numbers = [self.class_names.index(name) for name in self._names]
        background = self.class_names.index(BACKGROUND)
        outlines = [None if mask is None else read_polygons(mask, numbers, background) for mask in masks]
        return OutlinedImages(paths, ids, masks, self.coding, outlines)


def read_polygons(file: Path, numbers: Sequence[int], background: int) -> Outlines:
    """Read a text file of YOLO's polygons; what is wrong with it becomes its `problem`.

    Args:
        file: Path of the file.
        numbers: Number of the class of each number in the file.
        background: Number of the class of pixels without an object.
    """
    shapes = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        return Outlines((), background, problem=f"it cannot be read: {error}")
    for count, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            kind, ring = int(words[0]), array("d", map(float, words[1:]))
        except ValueError:
            return Outlines((), background, problem=f"line {count} has a word that is not a number")
        if len(ring) == 4:
            problem = (
                f"line {count} is a box, and masks need polygons, x1 y1 x2 y2 ...: use DetectionDataModule for boxes"
            )
            return Outlines((), background, problem=problem)
        if len(ring) < 6 or len(ring) % 2 or not all(math.isfinite(v) and -0.1 <= v <= 1.1 for v in ring):
            problem = f"line {count} is not a class and three or more points in shares of the sides, from 0 to 1"
            return Outlines((), background, problem=problem)
        if not 0 <= kind < len(numbers):
            problem = f"it has the class {kind} in line {count}, and {len(numbers)} classes have names"
            return Outlines((), background, problem=problem)
        shapes.append(Shape(numbers[kind], (ring,)))
    return Outlines(tuple(shapes), background)
