"""Class folders of image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.class_folders import ClassFolders
from sft_lightning.data.listed_files import FileKind
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.utils.errors import InputError


class FolderSource(ClassFolders, ImageSource):
    """Class folders of images, with or without folders of splits."""

    kind: ClassVar[FileKind] = IMAGES
    examples: ClassVar[str] = "CLASS/image.png, train/CLASS/image.png or only images (.png, .jpg, .webp, .tif, ...)"

    def __init__(self, path: Path, listed_classes: Sequence[str] = ()) -> None:
        """List the classes and their files, with the arguments of `ClassFolders`.

        Raises:
            InputError: The folder holds images and their masks, or what `ClassFolders` refuses.
        """
        if not listed_classes:
            for folder in (path, path / "train"):
                if all((folder / name).is_dir() for name in ("images", "masks")):
                    raise InputError(
                        f"folder {str(folder)!r} holds images and masks: use SegmentationDataModule; if these are two "
                        "classes, list them in class_names"
                    )
        super().__init__(path, listed_classes)

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split."""
        return FileImages(paths, ids)
