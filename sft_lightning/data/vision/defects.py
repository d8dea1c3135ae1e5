"""Images of normal and defective things, with masks of the defects where the data has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.column_names import KNOWN
from sft_lightning.data.frames import remove_extension
from sft_lightning.data.issues import Finding, report_fault
from sft_lightning.data.listed_files import find_files
from sft_lightning.data.placement_checks import Placed
from sft_lightning.data.source import Examples
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.folder_source import MASKS, FolderSource
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.masks import MaskCoding, read_values, upright_size
from sft_lightning.data.vision.shards import INDEX
from sft_lightning.data.vision.sources import ImageManifest, open_source
from sft_lightning.utils.errors import InputError

UNKNOWN = -2  # value of the pixels of an image without a mask, which are normal if the image is


@dataclass(frozen=True)
class DefectCoding(MaskCoding):
    """Masks of defects: every value but 0, and every color but black, is a defect."""

    def read(self, path: Path) -> npt.NDArray[np.int16]:
        """Read a mask, int16, (H, W): 1 for a defect, and 0.

        Args:
            path: Path of the file.

        Raises:
            OSError: It cannot be decoded, or is a JPEG, whose black is not 0 near edges.
        """
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise OSError("it is a JPEG, which does not keep values: save masks as PNG")
        mask: npt.NDArray[np.int16] = (read_values(path, by_color=True) != 0).astype(np.int16)
        return mask


_CODING = DefectCoding(("normal", "defect"), {}, by_color=True)


class DefectImages(MaskedImages):
    """Storage of images as files, of which defective ones may have a mask."""

    def read_mask(self, index: int) -> npt.NDArray[np.int16]:
        """Read the mask of an image; `UNKNOWN` in all pixels where it has none."""
        mask = super().read_mask(index)
        if mask is not None:
            return mask
        width, height = upright_size(self.paths[index])
        return np.full((height, width), UNKNOWN, dtype=np.int16)


def open_defect_source(
    name: str, root: str = "data", download: bool = False, skip: bool = False, listed_classes: Sequence[str] = ()
) -> ImageSource:
    """Open a source of normal and defective images.

    Args:
        name: Folder, table, folder of shards or name of a data set, as `open_source` takes them.
        root: Folder that holds data sets, and files that a table in another folder names.
        download: Whether to download a missing data set.
        skip: Whether files that a table lists may be missing.
        listed_classes: Class names that the user listed, which are not checked.

    Raises:
        InputError: The source does not exist, or holds no usable image.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        return DefectTable(path, root, skip, listed_classes)
    if path.is_dir() and not (path / INDEX).is_file():
        return DefectFolder(path, listed_classes)
    return open_source(name, root, download, skip=skip, listed_classes=listed_classes)


class DefectFolder(FolderSource):
    """Class folders of images, of which defects need none in `train/`, with masks in `ground_truth/CLASS/`.

    As MVTec AD has them: `train/good`, `test/good`, `test/KIND`, and `ground_truth/KIND/NAME_mask.png`. The mask of an
    image may also have its name.
    """

    reads_masks: ClassVar[bool] = True
    examples: ClassVar[str] = (
        "normal/a.png with KIND/b.png, or train/good/a.png with test/good/b.png and test/KIND/c.png"
    )

    def __init__(self, path: Path, listed_classes: Sequence[str] = ()) -> None:
        """List classes, files and masks, with the arguments of `FolderSource`.

        Raises:
            InputError: A mask belongs to no image or to several, or `FolderSource` refuses the folder.
        """
        super().__init__(path, listed_classes)
        self._masks = self._match_masks()
        if self._masks:
            self.messages = [*self.messages, *self._describe_masks()]

    def _find_classes(self, loose: Sequence[Path]) -> list[Path]:
        return [*super()._find_classes(loose), *self._list_evaluated_classes()]

    def _match_masks(self) -> dict[Path, Path]:
        """Return the mask of each image that has one."""
        folder = self.path / MASKS
        if not folder.is_dir():
            return {}
        images: dict[str, list[Path]] = {}
        for split, files in self._files.items():
            parent = self._splits[split]
            for path, label in files:
                if label >= 0:
                    images.setdefault(remove_extension(path.relative_to(parent).as_posix()), []).append(path)
        found: dict[Path, Path] = {}
        for name, file in find_files(str(folder), IMAGES):
            stem = remove_extension(name)
            owners = images.get(stem, []) or images.get(stem.removesuffix("_mask"), [])
            if len(owners) != 1:
                what = "belongs to no image: add it, or remove the mask" if not owners else (
                    f"may belong to '{show_path(owners[0])}' and to '{show_path(owners[1])}': rename one of them"
                )  # fmt: skip
                raise InputError(f"mask '{show_path(file)}' {what}")
            if owners[0] in found:
                raise InputError(
                    f"image '{show_path(owners[0])}' has the masks '{show_path(found[owners[0]])}' and "
                    f"'{show_path(file)}': join them, or remove one"
                )
            found[owners[0]] = Path(file)
        return found

    def _describe_masks(self) -> list[Finding]:
        """Return a finding about images of classes with masks that have none."""
        kinds = {path.parent for path in self._masks}
        without = [
            path for files in self._files.values() for path, _ in files
            if path.parent in kinds and path not in self._masks
        ]  # fmt: skip
        if not without:
            return []
        message = (
            f"{len(without):,} images have no mask beside others of their class, such as '{show_path(without[0])}'"
        )
        return [Finding("note", f"{message}: metrics of pixels leave them out", [str(path) for path in without])]

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split, with their masks if the source has any."""
        if not self._masks:
            return FileImages(paths, ids)
        return DefectImages(paths, ids, [self._masks.get(path) for path in paths], _CODING)


class DefectTable(ImageManifest):
    """Table with the columns path,label[,mask][,split][,group]; defects need no line of the training split."""

    known: ClassVar[tuple[str, ...]] = (*KNOWN, "mask")

    def _check_row(self, line: int, row: dict[str, str]) -> dict[str, str]:
        row = super()._check_row(line, row)
        if row.get("mask"):
            file, status = self._folders.find(line, row["mask"])
            if status is None:
                what, sentence = self._folders.explain(line, row["mask"])
                report_fault("lines without a mask", row["split"], row["path"], f"{what}, line {line}", sentence)
            row["mask"] = file
        return row

    def check_frames(self, row: Mapping[str, str], count: int) -> None:
        """Refuse a mask of a file of several frames."""
        if row.get("mask"):
            self.refuse_frames(row, count, "a mask")

    def _placed(self) -> list[Placed]:
        return [one._replace(label="example" if one.label else "") for one in super()._placed()]

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        masks = {row["file"]: Path(row["mask"]) for row in self._rows if row.get("mask")}
        parts = super().load()
        return {split: _add_masks(part, masks) for split, part in parts.items()} if masks else parts


def _add_masks(part: Examples, masks: Mapping[str, Path]) -> Examples:
    stored = part.storage
    assert isinstance(stored, FileImages)
    own = [masks.get(str(path)) for path in stored.paths]
    return Examples(DefectImages(stored.paths, stored.ids, own, _CODING), part.ids, part.labels, part.groups)


def resolve_mask(mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return masks in which the pixels of an image without one are normal if the image is, and not counted otherwise.

    Args:
        mask: Masks as `DefectImages` reads them, (B, H, W).
        labels: 0 for normal images, int64, (B,).
    """
    normal = (labels == 0).view(-1, 1, 1)
    return torch.where(mask == UNKNOWN, torch.where(normal, 0, -1).to(mask), mask)
