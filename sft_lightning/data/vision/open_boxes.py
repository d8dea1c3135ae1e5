"""Open a source of images with boxes by its name."""

import re
from collections.abc import Sequence
from pathlib import Path

from sft_lightning.data.table_header import read_column_names
from sft_lightning.data.vision.box_sources import BoxSource
from sft_lightning.data.vision.box_table import BoxTable
from sft_lightning.data.vision.coco_boxes import CocoBoxes
from sft_lightning.data.vision.coco_files import find_coco_files
from sft_lightning.data.vision.voc_boxes import ANNOTATIONS, XMLS, VocBoxes
from sft_lightning.data.vision.yolo_boxes import YoloBoxes
from sft_lightning.data.vision.yolo_files import TEXTS
from sft_lightning.utils.errors import InputError

EXPECTED = (
    "a JSON of COCO, a folder with COCO's JSON files, with YOLO's images and labels, or with Pascal VOC's JPEGImages "
    "and Annotations, or a table with the columns path,class,x1,y1,x2,y2"
)


_NUMBER = re.compile(r"[+-]?\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)
# A list of polygons or a mapping of run lengths that is not empty.
_OUTLINE = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')


def holds_boxes(name: str) -> bool:
    """Return whether a source has boxes of objects, as `open_box_source` takes it, and no outlines.

    Args:
        name: Source as the user named it.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        names = {name.strip().casefold() for name in read_column_names(path)} if path.is_file() else set[str]()
        return {"path", "class", "x1", "y1", "x2", "y2"} <= names
    if path.suffix.lower() != ".json" and not path.is_dir():
        return False
    if files := [file for file in find_coco_files(path).values() if file.is_file()]:
        contents = [file.read_bytes() for file in files]
        return any(b'"bbox"' in one for one in contents) and not any(_OUTLINE.search(one) for one in contents)
    if (path / ANNOTATIONS).is_dir() and any((path / ANNOTATIONS).glob(XMLS)):
        return True
    folders = (
        folder for folder in (path, *path.glob("*/")) if (path / "images").is_dir() or (folder / "images").is_dir()
    )
    labels = (file for folder in folders for file in sorted((folder / "labels").rglob(TEXTS)))
    lines = (line.split() for file in labels for line in file.read_text(errors="replace").splitlines())
    first = next((words for words in lines if words), [])
    return len(first) == 5 and all(_NUMBER.fullmatch(word) for word in first)


def open_box_source(
    name: str, root: str = "data", skip: bool = False, class_names: Sequence[str] | None = None
) -> BoxSource:
    """Open a source of images with boxes.

    Args:
        name: Folder or `.json` of COCO, folder of YOLO or of Pascal VOC, or a `.csv` or `.parquet` table.
        root: Second folder that the files of a table or a JSON may be in.
        skip: Whether files that a table lists may be missing.
        class_names: Names of the classes in the order of their numbers; None for those of the data.

    Raises:
        InputError: The source does not exist, or holds no usable image.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        return BoxTable(path, root, skip, class_names)
    if path.suffix.lower() == ".json" and path.is_file():
        return CocoBoxes(path, root, class_names)
    if path.is_dir() and find_coco_files(path):
        return CocoBoxes(path, root, class_names)
    if (path / ANNOTATIONS).is_dir() and any((path / ANNOTATIONS).glob(XMLS)):
        return VocBoxes(path, class_names)
    if any((folder / "labels").is_dir() for folder in (path, *path.glob("*/"))):
        return YoloBoxes(path, class_names)
    raise InputError(f"source {name!r} has no boxes in a known form: give {EXPECTED}")
