"""Sources of images with masks: folders `images` and `masks`, and tables with the columns path,mask[,split][,group]."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.data.file_groups import group_files
from sft_lightning.data.issues import Finding, report_fault
from sft_lightning.data.label_checks import check_groups
from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.placement_checks import Placed
from sft_lightning.data.source import SPLITS, Examples, relative
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.mask_classes import make_coding
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.masks import MaskCoding
from sft_lightning.data.vision.paired_folder import PairedFolder

HAS_MASK = "mask"  # name of the only label: an example has a mask, label 0, or none, label -1
EXPECTED = "images/a.jpg with masks/a.png, or train/images/a.jpg with train/masks/a.png"


class MaskSource(ImageSource):
    """Source of images, some with masks.

    Labels say whether an image has a mask: 0, or -1. `class_names` are those of the pixels.

    Attributes:
        coding: Meaning of the values of the masks.
    """

    coding: MaskCoding

    @property
    def label_names(self) -> Sequence[str]:
        """Name of the only label."""
        return (HAS_MASK,)

    @property
    @abstractmethod
    def masks(self) -> Sequence[Path]:
        """Paths of all masks."""

    def use_classes(
        self,
        folder: Path,
        class_names: Sequence[str] | None,
        class_colors: Mapping[str, Sequence[int]] | None,
        ignore_index: int,
    ) -> None:
        """Find out what the values of the masks mean, with the arguments of `make_coding`."""
        self.coding = make_coding(folder, self.masks, class_names, class_colors, ignore_index)
        self.class_names = self.coding.class_names


class MaskFolder(PairedFolder, MaskSource):
    """Folder with `images` and `masks` of the same names, or folders train, val, test and unlabeled of such."""

    targets: ClassVar[str] = "masks"
    noun: ClassVar[str] = "mask"
    expected: ClassVar[str] = EXPECTED

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str] | None = None,
        class_colors: Mapping[str, Sequence[int]] | None = None,
        ignore_index: int = 255,
    ) -> None:
        """List images and masks, and match them by their names.

        Args:
            path: Path of the folder.
            class_names: Names of the classes in the order of their numbers; None for those of the data.
            class_colors: Color of each class in the masks; None where they hold numbers.
            ignore_index: Value of pixels that are not counted.

        Raises:
            InputError: The source lacks images, a mask belongs to none or two, or an evaluated image lacks a mask.
        """
        super().__init__(path)
        self.use_classes(path, class_names, class_colors, ignore_index)

    def list_targets(self, folder: Path) -> dict[str, list[Path]]:
        """Return the files of masks by their names without extension."""
        return self.list_images(folder)

    def make_storage(self, paths: list[Path], ids: list[str], masks: list[Path | None]) -> MaskedImages:
        """Return the storage of the images of a split.

        Args:
            paths: Paths of the images.
            ids: Names of the images.
            masks: Path of each mask, or None.
        """
        return MaskedImages(paths, ids, masks, self.coding)

    @property
    def masks(self) -> list[Path]:
        """Paths of all masks."""
        return [mask for pairs in self.pairs.values() for _, mask in pairs if mask is not None]

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        parts = {}
        for split in SPLITS:
            if pairs := self.pairs.get(split):
                paths, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
                ids = [relative(path, self.path) for path in paths]
                parts[split] = Examples(self.make_storage(paths, ids, masks), ids, make_labels(masks))
        return group_files(self, self.path, parts)


class MaskTable(ManifestSource, MaskSource):
    """Table with the columns path,mask[,split][,group]; a blank mask means unlabeled."""

    known: ClassVar[tuple[str, ...]] = ("path", "mask", "split", "group")
    label_column: ClassVar[str] = "mask"

    def __init__(
        self,
        path: Path,
        root: str = "data",
        skip: bool = False,
        class_names: Sequence[str] | None = None,
        class_colors: Mapping[str, Sequence[int]] | None = None,
        ignore_index: int = 255,
    ) -> None:
        """Read the table and check every line.

        Args:
            path: Path of a `.csv` (UTF-8) or `.parquet` file (extra `parquet`).
            root: Second folder that the files may be in.
            skip: Whether to keep lines whose image is missing, which are left out when the examples are read.
            class_names: Names of the classes in the order of their numbers; None for those of the data.
            class_colors: Color of each class in the masks; None where they hold numbers.
            ignore_index: Value of pixels that are not counted.

        Raises:
            InputError: A path leads out of both folders, a file is missing, or two lines contradict each other; the
                message names the line.
        """
        super().__init__(path, root, skip, needs_labels=False)
        self.use_classes(path.parent, class_names, class_colors, ignore_index)

    def _check_row(self, line: int, row: dict[str, str]) -> dict[str, str]:
        row = super()._check_row(line, row)
        if row["label"]:
            file, status = self._folders.find(line, row["label"])
            if status is None:
                what, sentence = self._folders.explain(line, row["label"])
                report_fault("lines without a mask", row["split"], row["path"], f"{what}, line {line}", sentence)
            row["mask_file"] = file
        return row

    def check_frames(self, row: Mapping[str, str], count: int) -> None:
        """Refuse a mask of a file of several frames."""
        if row["label"]:
            self.refuse_frames(row, count, "a mask")

    def _check_names(self, listed_classes: Sequence[str]) -> list[Finding]:
        """Check for groups that look alike; labels are files."""
        places = {row["group"]: f"line {row['line']}" for row in reversed(self._rows)}
        counts = Counter(row["group"] for row in self._rows if row["group"])
        return [*check_groups(f"manifest {self.name!r}", counts, places)]

    def _placed(self) -> list[Placed]:
        return [one._replace(label=HAS_MASK if one.label else "") for one in super()._placed()]

    @property
    def masks(self) -> list[Path]:
        """Paths of all masks."""
        return [Path(row["mask_file"]) for row in self._rows if row["label"]]

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the images of one split, without masks."""
        return FileImages(paths, ids)

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        file_of = {row["path"]: Path(row["mask_file"]) for row in self._rows if row["label"]}
        parts = {}
        for split, part in super().load().items():
            assert isinstance(part.storage, FileImages)
            masks = [file_of.get(name) if split != "unlabeled" else None for name in part.ids]
            stored = MaskedImages(part.storage.paths, part.storage.ids, masks, self.coding)
            parts[split] = Examples(stored, part.ids, make_labels(masks), part.groups)
        return parts


def make_labels(masks: Sequence[Path | None]) -> Tensor:
    """Return 0 for each image with a mask and -1 for others, int64, (N,).

    Args:
        masks: Path of each mask, or None.
    """
    return torch.tensor([-1 if mask is None else 0 for mask in masks], dtype=torch.long)
