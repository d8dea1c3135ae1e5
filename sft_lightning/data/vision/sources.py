"""Where examples come from: a torchvision name, class folders, a CSV manifest, or the sample inside the package.

`open_source` turns the one word that a user writes into a `Source`. What a source knows about its classes and picture
shape is known as soon as it is opened; pictures are only touched by `load`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.mmap_columns import PrefixedTexts
from sft_lightning.data.source import Examples, concatenated, relative
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
    listed_classes: Sequence[str] = (),
) -> ImageSource:  # fmt: skip
    """Finds out what kind of source a word names, and opens it.

    Args:
        name: `sample`, `sample-digits`, a torchvision data set, a folder, one of shards, or a `.csv` / `.parquet`
            manifest.
        root: Folder that holds torchvision data sets, and files that a manifest in another folder names.
        download: Fetch a torchvision data set that is not there.
        setting: Name of the user's setting, for messages.
        skip: Files that a manifest lists may be missing.
        listed_classes: Names of classes that the user listed, which need no check.

    Raises:
        InputError: Nothing of that name exists, or what exists holds no usable picture.
    """
    if name in ("sample", "sample-digits"):
        return SampleSource(name)
    base = name.split("/")[0]
    if base in DATASETS:
        return TorchvisionSource(name, Path(root), download)
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        return ImageManifest(path, root, skip, listed_classes)
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
    """A table of image files."""

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the files of one split."""
        return FileImages(paths, ids)


class SampleSource(ImageSource):
    """The pictures shipped inside the package: small, real, and there without a network.

    `sample` is 10,000 training and 2,000 test pictures of Fashion-MNIST; `sample-digits` is 10,000 MNIST digits
    without labels.
    """

    def __init__(self, name: str) -> None:
        """Opens one of the two.

        Args:
            name: `sample` or `sample-digits`.
        """
        self.name = name
        self.image_shape = (1, 28, 28)
        self.class_names = FASHION if name == "sample" else ()

    def load(self) -> dict[str, Examples]:
        """Reads the compressed files (about 0.1 s)."""
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
    """A standard data set, read from disk by torchvision's own classes."""

    def __init__(self, name: str, root: Path, download: bool) -> None:
        """Looks for the data set.

        Args:
            name: One of `DATASETS`; EMNIST takes its split after a slash, as in `EMNIST/letters`.
            root: Folder that holds it.
            download: Fetch it when it is not there.

        Raises:
            InputError: It is not there and may not or cannot be downloaded.
        """
        self.name = name
        self._parts = load_dataset(name, root, download)
        self.class_names = self._parts.class_names
        self.image_shape = self._parts.image_shape

    def load(self) -> dict[str, Examples]:
        """Reads the parts; the shared tensors are not copied."""
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
    """All training and unlabeled pictures of a source, without their labels.

    Args:
        name: Name, folder or file of the source, as for `open_source`.
        root: Folder of downloaded data sets.
        download: Whether to download a data set that is missing.
        skip: Whether files that a manifest lists may be missing.

    Raises:
        InputError: It has neither.
    """
    source = open_source(name, root, download, "unlabeled_source", skip)
    for message in source.messages:
        rank_zero_info(f"Data: {message}.")
    parts = source.load()
    chosen = [parts[split] for split in ("train", "unlabeled") if split in parts]
    if not chosen:
        raise InputError(f"unlabeled_source {name!r} has no training or unlabeled image: give a source with some")
    part = chosen[0] if len(chosen) == 1 else concatenated(*[(p, list(range(len(p)))) for p in chosen])
    ids = PrefixedTexts(f"{name}:", part.ids)
    return Examples(part.images, list(ids) if isinstance(part.ids, list) else ids, torch.full((len(part),), -1))
