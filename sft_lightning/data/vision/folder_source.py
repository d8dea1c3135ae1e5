"""Class folders of image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.class_folders import ClassFolders
from sft_lightning.data.listed_files import FileKind
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages


class FolderSource(ClassFolders, ImageSource):
    """Class folders of images, with or without folders of splits."""

    kind: ClassVar[FileKind] = IMAGES
    examples: ClassVar[str] = "CLASS/image.png, train/CLASS/image.png or only images (.png, .jpg, .webp, .tif, ...)"

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split."""
        return FileImages(paths, ids)
