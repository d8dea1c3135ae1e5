"""Open a source of images with masks by its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sft_lightning.data.source import split_of_name
from sft_lightning.data.table_header import read_column_names
from sft_lightning.data.vision.coco_files import find_coco_files, refuse_unannotated
from sft_lightning.data.vision.coco_source import CocoSource
from sft_lightning.data.vision.mask_sources import EXPECTED, MaskFolder, MaskSource, MaskTable
from sft_lightning.data.vision.yolo_source import YoloFolder
from sft_lightning.utils.errors import InputError


def holds_masks(name: str) -> bool:
    """Return whether a source has masks or outlines beside its images, as `open_mask_source` takes it.

    Args:
        name: Source as the user named it.

    Raises:
        InputError: It is COCO's, and none of its files has an annotation.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        names = {name.strip().casefold() for name in read_column_names(path)} if path.is_file() else set[str]()
        return {"path", "mask"} <= names and "label" not in names  # classes count where a table has both
    if path.suffix.lower() == ".json":
        refuse_unannotated([path] if path.is_file() else [])
        return path.is_file()
    if not path.is_dir():
        return False
    folders = [path, *(child for child in path.glob("*/") if split_of_name(child.name))]
    if any((one / "images").is_dir() and (one / target).is_dir() for one in folders for target in ("masks", "labels")):
        return True
    files = [*find_coco_files(path).values()]
    refuse_unannotated(files)
    return bool(files)


def open_mask_source(
    name: str,
    root: str = "data",
    skip: bool = False,
    class_names: Sequence[str] | None = None,
    class_colors: Mapping[str, Sequence[int]] | None = None,
    ignore_index: int = 255,
) -> MaskSource:
    """Open a source of images with masks.

    Args:
        name: Folder with `images` and `masks` or with `images` and YOLO's `labels`, a folder or `.json` of COCO, or a
            `.csv` or `.parquet` table.
        root: Second folder that the files of a table or a JSON may be in.
        skip: Whether files that a table lists may be missing.
        class_names: Names of the classes in the order of their numbers; None for those of the data.
        class_colors: Color of each class in the masks; None where they hold numbers.
        ignore_index: Value of pixels that are not counted.

    Raises:
        InputError: The source does not exist, or holds no usable image.
    """
    path, settings = Path(name), (class_names, class_colors, ignore_index)
    if path.suffix.lower() in (".csv", ".parquet"):
        return MaskTable(path, root, skip, *settings)
    if path.suffix.lower() == ".json" and path.is_file():
        return CocoSource(path, root, class_names, class_colors)
    if path.is_dir():
        has_masks = any((folder / "masks").is_dir() for folder in (path, *path.glob("*/")))
        if not has_masks and find_coco_files(path):
            return CocoSource(path, root, class_names, class_colors)
        has_labels = any((folder / "labels").is_dir() for folder in (path, *path.glob("*/")))
        return (YoloFolder if has_labels and not has_masks else MaskFolder)(path, *settings)
    raise InputError(
        f"source {name!r} is neither a folder nor a .csv or .parquet table or .json of COCO that exists: give a folder "
        f"with {EXPECTED}"
    )
