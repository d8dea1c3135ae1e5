"""Source of images with boxes in text files, as YOLO reads them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.source import Examples
from sft_lightning.data.vision.box_sources import BoxSource, name_classes
from sft_lightning.data.vision.objects import Objects, make_objects, refuse_objects
from sft_lightning.data.vision.paired_folder import PairedFolder
from sft_lightning.data.vision.yolo_files import list_label_files, read_yolo_names

_SHARES = (-0.5, 1.5)  # of corners, which may lie a little outside; anything else is in another unit


class YoloBoxes(PairedFolder, BoxSource):
    """Folder with `images` and `labels`, text files of the same names with an object a line: class cx cy w h.

    Center and sides are shares of the image's sides. A line with the corners of a polygon counts as the box around it.
    An image without a file is unlabeled, one with an empty file shows no object. Names of classes are in `data.yaml`,
    or in `classes.txt`.
    """

    targets: ClassVar[str] = "labels"
    noun: ClassVar[str] = "label file"
    expected: ClassVar[str] = "images/a.jpg with labels/a.txt, or images/train/a.jpg with labels/train/a.txt"
    hint: ClassVar[str] = ", empty if it shows no object"

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        """List images and text files, and match them by their names.

        Args:
            path: Path of the folder.
            class_names: Names of the classes in the order of their numbers; None for those of the data.

        Raises:
            InputError: The source lacks images or names of classes, or a text file belongs to no image.
        """
        super().__init__(path)
        self._names = read_yolo_names(path)
        self.class_names = name_classes(self._names, class_names, self.name)

    def list_targets(self, folder: Path) -> dict[str, list[Path]]:
        """Return the text files by their names without extension."""
        return list_label_files(folder)

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; text files are read, and no image is."""
        numbers = [self.class_names.index(name) for name in self._names]
        return self.make_parts({
            split: [(image, None if file is None else read_yolo_boxes(file, numbers)) for image, file in pairs]
            for split, pairs in self.pairs.items()
        })  # fmt: skip


def read_yolo_boxes(file: Path, numbers: Sequence[int]) -> Objects:
    """Read a text file of YOLO's boxes or polygons; what is wrong with it becomes its `problem`.

    Args:
        file: Path of the file.
        numbers: Number of the class of each number in the file.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        return refuse_objects(file, f"it cannot be read: {error}")
    rows = []
    for count, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            number = float(words[0])
            kind, values = int(number), [*map(float, words[1:])]
        except (ValueError, OverflowError):
            return refuse_objects(file, f"line {count} has a word that is not a number")
        if kind != number or not 0 <= kind < len(numbers):
            return refuse_objects(file, f"line {count} has the class {words[0]}, and {len(numbers)} classes have names")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            return refuse_objects(
                file,
                f"line {count} has {len(values)} numbers after the class: give cx cy w h, or x1 y1 x2 y2 x3 y3 ... of "
                "a polygon",
            )
        corners = _surround(values)
        if not all(math.isfinite(v) and _SHARES[0] <= v <= _SHARES[1] for v in corners):
            return refuse_objects(file, f"line {count} is not in shares of the image's sides, from 0 to 1")
        rows.append((numbers[kind], corners, False))
    return make_objects(file, rows, are_shares=True)


def _surround(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box of center and sides, or of the box around a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if not all(map(math.isfinite, values)):
        return (math.nan,) * 4
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
