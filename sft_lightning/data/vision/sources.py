"""Sources of images: torchvision data sets, class folders, manifests, shards, and the sample in the package.

`open_source` turns the name that a user writes into a `Source`. Classes and image shape are known as soon as a source
is opened; only `load` touches the images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.label_columns import LabelColumns
from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.source import Examples, relative, take_unlabeled
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.folder_source import FolderSource
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.shards import INDEX, ShardSource
from sft_lightning.data.vision.torchvision_sources import DATASETS, load_dataset, read_idx
from sft_lightning.utils.errors import InputError, did_you_mean

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SAMPLE = Path(__file__).parents[1] / "sample"


def open_source(
    name: str, root: str = "data", download: bool = False, setting: str = "source", skip: bool = False,
    listed_classes: Sequence[str] = (), needs_labels: bool = True, separator: str | None = None,
    label_columns: LabelColumns | None = None,
) -> ImageSource:  # fmt: skip
    """Open a source, whose kind follows from its name.

    Args:
        name: `sample`, `sample-digits`, a torchvision data set, a folder of images or shards, or a `.csv` /
            `.parquet` manifest.
        root: Folder that holds torchvision data sets, and files that a manifest in another folder names.
        download: Whether to download a missing torchvision data set.
        setting: Name of the setting, for messages.
        skip: Whether files that a manifest lists may be missing.
        listed_classes: Class names that the user listed, which are not checked.
        needs_labels: Whether to refuse a manifest without any label.
        separator: Separator of several classes in a label of a manifest; None for one class each.
        label_columns: Columns of 0 and 1 of a manifest in place of the column `label`, each a class.

    Raises:
        InputError: The source does not exist, or holds no usable image.
    """
    if name in ("sample", "sample-digits"):
        return SampleSource(name)
    base = name.split("/")[0]
    if base in DATASETS:
        return TorchvisionSource(name, Path(root), download)
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        return ImageManifest(path, root, skip, listed_classes, needs_labels, separator, label_columns)
    if (path / INDEX).is_file():
        return ShardSource(path)
    if path.is_dir():
        return FolderSource(path, listed_classes)
    if path.is_file():
        raise InputError(f"{setting} {name!r} is a single file: give a folder, a .csv manifest or a .parquet manifest")
    known = [*DATASETS, "sample", "sample-digits"]
    raise InputError(
        f"{setting} {name!r} is neither a folder or manifest that exists nor a known data "
        f"set{did_you_mean(name, known)}; "
        f"known are {', '.join(known)}"
    )


class ImageManifest(ManifestSource, ImageSource):
    """Source of image files listed in a table."""

    noun: ClassVar[str] = "an image"

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split."""
        return FileImages(paths, ids)


class SampleSource(ImageSource):
    """Small real data sets that are shipped with the package and need no download.

    `sample` is 10,000 training and 2,000 test images of Fashion-MNIST; `sample-digits` is 10,000 MNIST digits
    without labels.
    """

    def __init__(self, name: str) -> None:
        """Open one of the data sets.

        Args:
            name: Name of the data set, `sample` or `sample-digits`.
        """
        self.name = name
        self.image_shape = (1, 28, 28)
        self.class_names = FASHION if name == "sample" else ()

    def load(self) -> dict[str, Examples]:
        """Read the compressed files (about 0.1 s)."""
        if self.name == "sample-digits":
            return {"unlabeled": _memory_part(read_idx(SAMPLE / "digits-images-idx3-ubyte.gz"), None, "digits")}
        return {
            split: _memory_part(
                read_idx(SAMPLE / f"fashion-{split}-images-idx3-ubyte.gz"),
                read_idx(SAMPLE / f"fashion-{split}-labels-idx1-ubyte.gz"),
                split,
            )
            for split in ("train", "test")
        }


def _memory_part(data: Tensor, labels: Tensor | None, prefix: str) -> Examples:
    images = data[:, None] if data.ndim == 3 else data
    ids = [f"{prefix}/{i}" for i in range(len(images))]
    known = torch.full((len(images),), -1) if labels is None else labels.long()
    if len(known) != len(images):
        raise InputError(f"part {prefix!r} has {len(images)} images and {len(known)} labels: the files do not match")
    return Examples(TensorStorage(images), ids, known)


class TorchvisionSource(ImageSource):
    """Standard data set, read from disk by torchvision."""

    def __init__(self, name: str, root: Path, download: bool) -> None:
        """Find the data set on disk, or download it.

        Args:
            name: Name from `DATASETS`; EMNIST takes its split after a slash, as in `EMNIST/letters`.
            root: Folder that holds the data set.
            download: Whether to download the data set if it is missing.

        Raises:
            InputError: The data set is missing and may not or cannot be downloaded.
        """
        self.name = name
        self._parts = load_dataset(name, root, download)
        self.class_names = self._parts.class_names
        self.image_shape = self._parts.image_shape

    def load(self) -> dict[str, Examples]:
        """Read the splits; the shared tensors are not copied."""
        parts = {}
        for split, (images, labels) in self._parts.splits().items():
            numbers = torch.as_tensor([] if labels is None else labels)
            low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
            if len(numbers) and not -1 <= low <= high < len(self.class_names):
                raise InputError(
                    f"source {self.name!r}: the {split} labels go from {low} to {high}, and it has "
                    f"{len(self.class_names)} classes: fetch it again"
                )
            if isinstance(images, Tensor):
                parts[split] = _memory_part(images, labels, split)
            else:
                ids = [relative(path, self._parts.root) for path in images]
                parts[split] = Examples(FileImages(images, ids), ids, torch.as_tensor(labels).long())
        return parts


def open_unlabeled(name: str, root: str = "data", download: bool = False, skip: bool = False) -> Examples:
    """Return all training and unlabeled images of a source, without their labels.

    Args:
        name: Name of the source, as in `open_source`.
        root: Folder that holds torchvision data sets, and files that a manifest in another folder names.
        download: Whether to download a missing torchvision data set.
        skip: Whether files that a manifest lists may be missing.

    Raises:
        InputError: The source has no training or unlabeled images.
    """
    source = open_source(name, root, download, "unlabeled_source", skip)
    for message in source.messages:
        rank_zero_info(f"Data: {message}.")
    return take_unlabeled(source)
