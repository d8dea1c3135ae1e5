"""Load standard data sets by name with torchvision's classes, downloaded only on request."""

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from sft_lightning.utils.errors import InputError, did_you_mean

_BLOCK = 2**20  # bytes read at once
RawImages = Tensor | list[Path]
Reader = Callable[[], tuple[RawImages, Any]]

# Debian's package `dataset-fashion-mnist` puts the four IDX files here.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of a torchvision data set.

    Attributes:
        splits: Arguments of torchvision's class for each split.
        shape: Shape (C, H, W) of all images, or None where the images are files.
        idx: Pattern of the names of IDX files of the MNIST family, which is read without torchvision's cache.
    """

    splits: dict[str, dict[str, Any]]
    shape: tuple[int, int, int] | None = None
    idx: str | None = None


_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_WORD: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_GRAY, _SMALL = (1, 28, 28), (3, 32, 32)

DATASETS = {
    "MNIST": DatasetSpec(_FLAG, _GRAY, "{part}"),
    "FashionMNIST": DatasetSpec(_FLAG, _GRAY, "{part}"),
    "KMNIST": DatasetSpec(_FLAG, _GRAY, "{part}"),
    "EMNIST": DatasetSpec(_FLAG, _GRAY, "emnist-{split}-{part}"),
    "CIFAR10": DatasetSpec(_FLAG, _SMALL),
    "CIFAR100": DatasetSpec(_FLAG, _SMALL),
    "SVHN": DatasetSpec(_WORD, _SMALL),
    "STL10": DatasetSpec({**_WORD, "unlabeled": {"split": "unlabeled"}}, (3, 96, 96)),
    "Flowers102": DatasetSpec({**_WORD, "val": {"split": "val"}}),
    "OxfordIIITPet": DatasetSpec({"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "Food101": DatasetSpec(_WORD),
    "EuroSAT": DatasetSpec({"train": {}}),
    "ImageNet": DatasetSpec({"train": {"split": "train"}, "test": {"split": "val"}}),
}
_EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")


@dataclass
class TorchvisionData:
    """Torchvision data set that exists on disk.

    Attributes:
        root: Folder that file names are relative to.
        class_names: Names of the classes in the order of the labels.
        image_shape: Shape (C, H, W) of all images, or None.
        readers: Function that returns images and labels, for each split.
    """

    root: Path
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    readers: dict[str, Reader] = field(default_factory=dict)

    def splits(self) -> dict[str, tuple[RawImages, Any]]:
        """Return images and labels of every split."""
        return {split: read() for split, read in self.readers.items()}


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: Path of the file, with or without `.gz`.

    Returns:
        Tensor of uint8 of the shape in the header: (N, H, W) for images, (N,) for labels.

    Raises:
        InputError: The file is missing or contradicts its header.
    """
    content = bytearray()  # the tensor shares it, so that nothing is in memory twice
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(_BLOCK):
                content += block
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"file {str(path)!r} is not a readable IDX file ({error}): download it again") from error
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    if zero != 0 or kind != 8 or data.size != math.prod(shape):
        raise InputError(
            f"file {str(path)!r} is not a complete IDX file: its header says {shape}, and it holds {data.size} bytes; "
            "download it again"
        )
    return torch.from_numpy(data.reshape(shape))


def load_dataset(name: str, root: Path, download: bool) -> TorchvisionData:
    """Find a data set on disk, or download it.

    Args:
        name: Key of `DATASETS`, or `EMNIST/letters` and the like for a split of EMNIST.
        root: Folder that holds the data sets.
        download: Whether to download a missing data set.

    Raises:
        InputError: The data set is missing and cannot or must not be downloaded.
    """
    import torchvision.datasets as tv

    base, _, variant = name.partition("/")
    spec = DATASETS[base]
    if base == "EMNIST":
        variant = variant or "balanced"
        if variant not in _EMNIST_SPLITS:
            raise InputError(
                f"source {name!r}: EMNIST has the splits "
                f"{', '.join(_EMNIST_SPLITS)}{did_you_mean(variant, _EMNIST_SPLITS)}"
            )
    elif variant:
        raise InputError(f"source {name!r}: {base} has no variants; write {base!r}")
    cls = getattr(tv, base)
    if spec.idx is not None:
        return _load_idx(base, variant, spec, root, download, cls)
    first = _construct(base, cls, root, download, spec.splits["train"])

    def reader(split: str, kwargs: dict[str, Any]) -> Reader:
        return lambda: _get_content(first if split == "train" else _construct(base, cls, root, download, kwargs))

    readers = {split: reader(split, kwargs) for split, kwargs in spec.splits.items()}
    return TorchvisionData(root, _get_class_names(first), spec.shape, readers)


def _construct(name: str, cls: Callable[..., Any], root: Path, download: bool, kwargs: dict[str, Any]) -> Any:
    # torchvision's ImageNet has no argument `download`: its archives must be fetched by hand.
    extra: dict[str, Any] = {}
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if download and name != "ImageNet":
        root.mkdir(parents=True, exist_ok=True)
        lock, extra = FileLock(root / f".{name}.lock"), {"download": True}  # one download for all ranks
    try:
        with lock:
            return cls(str(root), **kwargs, **extra)
    except (OSError, RuntimeError, ValueError) as error:
        raise _missing_error(name, root, download, error) from error


def _missing_error(name: str, root: Path, download: bool, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
    if download and name != "ImageNet":
        return InputError(
            f"source {name!r} could not be downloaded to {str(root)!r} ({reason}): download it on a machine with a "
            "network and give its folder as root"
        )
    remedy = "fetch its archives by hand" if name == "ImageNet" else "set download: true"
    return InputError(
        f"source {name!r} is not in root {str(root)!r} ({reason}): {remedy}, or give the folder that holds it as root"
    )


def _get_class_names(dataset: Any) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if names is None:  # SVHN has ten digits and no list of names
        names = [str(i) for i in range(10)]
    return tuple(name if isinstance(name, str) else name[0] for name in names)  # ImageNet lists synonyms


def _get_content(dataset: Any) -> tuple[RawImages, Any]:
    """Return images as a uint8 tensor of shape (N, C, H, W) or a list of files, and their labels."""
    labels = next(
        getattr(dataset, key) for key in ("targets", "labels", "_labels") if getattr(dataset, key, None) is not None
    )
    if hasattr(dataset, "data"):
        data = torch.as_tensor(dataset.data)
        if data.shape[-1] == 3:  # CIFAR stores the channels last
            data = data.permute(0, 3, 1, 2).contiguous()
        return data, torch.as_tensor(np.asarray(labels))
    files: Sequence[Any] = next(
        getattr(dataset, key) for key in ("_image_files", "_images", "samples") if hasattr(dataset, key)
    )
    return [Path(f[0] if isinstance(f, tuple) else f) for f in files], labels


def _load_idx(name: str, variant: str, spec: DatasetSpec, root: Path, download: bool, cls: Any) -> TorchvisionData:
    folders = [root / name / "raw", root / name, root]
    if name == "FashionMNIST":
        folders.append(DEBIAN_FASHION_MNIST)
    files = _find_idx(folders, spec, variant)
    if files is None and download:
        arguments = {"split": variant} if variant else {}
        for kwargs in spec.splits.values():
            _construct(name, cls, root, True, {**kwargs, **arguments})
        files = _find_idx(folders, spec, variant)
    if files is None:
        raise _missing_error(name, root, download, FileNotFoundError("its IDX files were not found"))
    classes = list(cls.classes_split_dict[variant]) if name == "EMNIST" else list(cls.classes)
    offset = 1 if classes[0] == "N/A" else 0  # EMNIST letters count from 1

    def read(split: str) -> tuple[RawImages, Any]:
        images, labels = (read_idx(path) for path in files[split])
        # EMNIST stores its images mirrored along the diagonal.
        return (images.transpose(1, 2).contiguous() if name == "EMNIST" else images), labels.long() - offset

    return TorchvisionData(
        root, tuple(classes[offset:]), spec.shape, {"train": lambda: read("train"), "test": lambda: read("test")}
    )


def _find_idx(folders: list[Path], spec: DatasetSpec, variant: str) -> dict[str, tuple[Path, Path]] | None:
    """Return the image and label file of each split in the first folder that has all four."""
    assert spec.idx is not None
    for folder in folders:
        files: dict[str, tuple[Path, Path]] = {}
        for split, part in (("train", "train"), ("test", "test" if variant else "t10k")):
            stem = spec.idx.format(split=variant, part=part)
            pair = [_find_file(folder / f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
            if pair[0] is not None and pair[1] is not None:
                files[split] = (pair[0], pair[1])
        if len(files) == 2:
            return files
    return None


def _find_file(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)
