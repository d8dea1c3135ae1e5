"""Class folders of image files."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.class_folders import ClassFolders, Entries
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import FileKind
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.utils.errors import InputError

_BOXES = ("images and their annotations", "DetectionDataModule for boxes, or SegmentationDataModule for outlines")
# Folders of images and of annotations of data sets without class folders, with what reads them.
_ANNOTATED = {
    ("images", "masks"): ("images and masks", "SegmentationDataModule"),
    ("images", "labels"): _BOXES,
    ("images", "annotations"): _BOXES,
    ("JPEGImages", "Annotations"): ("images and boxes of Pascal VOC", "DetectionDataModule"),
}
MASKS = "ground_truth"  # name of the folder of masks of defects, as in MVTec AD


class FolderSource(ClassFolders, ImageSource):
    """Class folders of images, with or without folders of splits."""

    kind: ClassVar[FileKind] = IMAGES
    reads_masks: ClassVar[bool] = False  # whether the folder `MASKS` is read
    examples: ClassVar[str] = "CLASS/image.png, train/CLASS/image.png or only images (.png, .jpg, .webp, .tif, ...)"

    def __init__(self, path: Path, listed_classes: Sequence[str] = ()) -> None:
        """List the classes and their files, with the arguments of `ClassFolders`.

        Raises:
            InputError: The folder holds images and their masks, or what `ClassFolders` refuses.
        """
        if not listed_classes:
            for folder, (images, others) in product((path, path / "train"), _ANNOTATED):
                if (folder / images).is_dir() and (folder / others).is_dir():
                    what, remedy = _ANNOTATED[images, others]
                    raise InputError(
                        f"folder {str(folder)!r} holds {what}: use {remedy}; if {images!r} and {others!r} are two "
                        "classes, list them in class_names"
                    )
        self._left_out: list[str] = []
        super().__init__(path, listed_classes)
        if self._left_out and not self.reads_masks:
            message = f"masks in '{show_path(path / MASKS)}' are not read: AnomalyDataModule does"
            self.messages = [*self.messages, Finding("ignored", message, self._left_out)]

    def _list_entries(self, folder: Path) -> Entries:
        """Return the entries of a folder, without that of the masks of other folders beside it."""
        entries = super()._list_entries(folder)
        masks = folder / MASKS
        if folder != self.path or masks not in entries.folders or super()._list_entries(masks).files:
            return entries
        self._left_out = [MASKS]
        return entries._replace(folders=[one for one in entries.folders if one != masks])

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split."""
        return FileImages(paths, ids)
