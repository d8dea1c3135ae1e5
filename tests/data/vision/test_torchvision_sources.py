import gzip
import importlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from scipy.io import savemat

from sft_lightning.data.source import Examples
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision import torchvision_sources
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.sources import open_source
from sft_lightning.data.vision.torchvision_sources import DATASETS, read_idx
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip torchvision's checksums, which the fake files do not match; nothing else is replaced."""

    def exists(path: str, md5: str | None = None) -> bool:
        return Path(path).is_file()

    for name in ("cifar", "svhn", "stl10", "flowers102"):
        monkeypatch.setattr(importlib.import_module(f"torchvision.datasets.{name}"), "check_integrity", exists)
    monkeypatch.setattr(torchvision_sources, "DEBIAN_FASHION_MNIST", Path("nowhere"))


def noise(*shape: int) -> Bytes:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def idx(path: Path, data: Bytes, packed: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def idx_set(folder: Path, stems: tuple[str, str], labels: list[int], packed: bool) -> dict[str, Bytes]:
    made = {}
    for split, stem in zip(("train", "test"), stems, strict=True):
        made[split] = noise(len(labels), 28, 28)
        idx(folder / f"{stem}-images-idx3-ubyte", made[split], packed)
        idx(folder / f"{stem}-labels-idx1-ubyte", np.array(labels, np.uint8), packed)
    return made


def pixels(part: Examples) -> Bytes:
    assert isinstance(part.storage, TensorStorage)
    array: Bytes = part.storage.data.numpy()
    return array


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["{name}/raw", "{name}", "."])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_family_is_read_from_idx_files(tmp_path: Path, name: str, place: str, packed: bool) -> None:
    made = idx_set(tmp_path / place.format(name=name), ("train", "t10k"), [3, 0, 9], packed)
    source = open_source(name, str(tmp_path))
    parts = source.load()
    assert source.image_shape == (1, 28, 28)
    assert source.class_names == tuple(getattr(tv, name).classes)
    for split in ("train", "test"):
        assert (pixels(parts[split])[:, 0] == made[split]).all()
        assert parts[split].labels.tolist() == [3, 0, 9]
        assert parts[split].ids == [f"{split}/{i}" for i in range(3)]


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = idx_set(tmp_path / "debian", ("train", "t10k"), [1, 2], packed=True)
    monkeypatch.setattr(torchvision_sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    parts = open_source("FashionMNIST", str(tmp_path / "root")).load()
    assert (pixels(parts["train"])[:, 0] == made["train"]).all()
    with pytest.raises(InputError):
        open_source("MNIST", str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("name", "variant", "labels", "expected", "classes"),
    [
        ("EMNIST/letters", "letters", [1, 26], [0, 25], tuple("abcdefghijklmnopqrstuvwxyz")),
        ("EMNIST", "balanced", [0, 46], [0, 46], None),
        ("EMNIST/digits", "digits", [0, 9], [0, 9], tuple("0123456789")),
    ],
)
def test_emnist_is_upright_and_counts_from_zero(
    tmp_path: Path, name: str, variant: str, labels: list[int], expected: list[int], classes: tuple[str, ...] | None
) -> None:
    stems = f"emnist-{variant}-train", f"emnist-{variant}-test"
    made = idx_set(tmp_path / "EMNIST" / "raw", stems, labels, packed=True)
    source = open_source(name, str(tmp_path))
    part = source.load()["train"]
    assert (pixels(part)[:, 0] == made["train"].transpose(0, 2, 1)).all()
    assert part.labels.tolist() == expected
    assert len(source.class_names) == (47 if classes is None else len(classes))
    assert classes is None or source.class_names == classes


def _pickle(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize(
    ("name", "base", "files", "key", "meta", "count"),
    [
        (
            "CIFAR10",
            "cifar-10-batches-py",
            [f"data_batch_{i}" for i in range(1, 6)],
            "labels",
            ("batches.meta", "label_names"),
            10,
        ),
        ("CIFAR100", "cifar-100-python", ["train"], "fine_labels", ("meta", "fine_label_names"), 100),
    ],
)
def test_cifar_is_read(
    tmp_path: Path, name: str, base: str, files: list[str], key: str, meta: tuple[str, str], count: int
) -> None:
    made = noise(2 * len(files), 3, 32, 32)
    for i, file in enumerate(files):
        _pickle(tmp_path / base / file, data=made[2 * i : 2 * i + 2].reshape(2, -1), **{key: [i, count - 1]})
    held = noise(3, 3, 32, 32)
    test = "test_batch" if name == "CIFAR10" else "test"
    _pickle(tmp_path / base / test, data=held.reshape(3, -1), **{key: [0, 1, 2]})
    _pickle(tmp_path / base / meta[0], **{meta[1]: [f"class {i}" for i in range(count)]})
    source = open_source(name, str(tmp_path))
    parts = source.load()
    assert source.image_shape == (3, 32, 32)
    assert source.class_names == tuple(f"class {i}" for i in range(count))
    assert (pixels(parts["train"]) == made).all()
    assert (pixels(parts["test"]) == held).all()
    assert parts["train"].labels.tolist() == [n for i in range(len(files)) for n in (i, count - 1)]


def test_svhn_label_ten_is_zero(tmp_path: Path) -> None:
    made = noise(32, 32, 3, 3)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": made, "y": np.array([[10], [1], [4]], np.uint8)})
    source = open_source("SVHN", str(tmp_path))
    part = source.load()["test"]
    assert source.class_names == tuple("0123456789")
    assert source.image_shape == (3, 32, 32)
    assert (pixels(part) == made.transpose(3, 2, 0, 1)).all()
    assert part.labels.tolist() == [0, 1, 4]


def test_stl10_has_an_unlabeled_split(tmp_path: Path) -> None:
    base = tmp_path / "stl10_binary"
    base.mkdir()
    made = {split: noise(count, 3, 96, 96) for split, count in (("train", 2), ("test", 2), ("unlabeled", 3))}
    for split, data in made.items():
        (base / f"{split}_X.bin").write_bytes(data.transpose(0, 1, 3, 2).tobytes())  # columns first
    for split in ("train", "test"):
        (base / f"{split}_y.bin").write_bytes(bytes([10, 1]))
    names = tuple(f"thing {i}" for i in range(10))
    (base / "class_names.txt").write_text("\n".join(names) + "\n")
    source = open_source("STL10", str(tmp_path))
    parts = source.load()
    assert source.class_names == names
    assert source.image_shape == (3, 96, 96)
    for split, data in made.items():
        assert (pixels(parts[split]) == data).all()
    assert parts["train"].labels.tolist() == [9, 0]
    assert parts["unlabeled"].labels.tolist() == [-1] * 3


def flowers(root: Path) -> dict[str, list[str]]:
    base = root / "flowers-102"
    for i in range(1, 7):
        write_image(base / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1, 2, 102]])})
    savemat(base / "setid.mat", {"trnid": np.array([[6, 1]]), "valid": np.array([[2, 5]]), "tstid": np.array([[3, 4]])})
    return {
        split: [f"flowers-102/jpg/image_{i:05d}.jpg" for i in listed]
        for split, listed in (("train", (6, 1)), ("val", (2, 5)), ("test", (3, 4)))
    }


def pets(root: Path) -> dict[str, list[str]]:
    base = root / "oxford-iiit-pet"
    listed = {"trainval": ["Abyssinian_1", "great_pyrenees_7"], "test": ["great_pyrenees_2", "Abyssinian_9"]}
    (base / "annotations").mkdir(parents=True)
    for split, names in listed.items():
        lines = [f"{name} {1 if name.startswith('A') else 2} 1 1\n" for name in names]
        (base / "annotations" / f"{split}.txt").write_text("".join(lines))
        for name in names:
            write_image(base / "images" / f"{name}.jpg", len(name))
    ids = {split: [f"oxford-iiit-pet/images/{name}.jpg" for name in names] for split, names in listed.items()}
    return {"train": ids["trainval"], "test": ids["test"]}


def food(root: Path) -> dict[str, list[str]]:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    made = {}
    for split, i in (("train", 1), ("test", 2)):
        listed = {name: [f"{name}/{i}"] for name in ("apple_pie", "waffles")}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        made[split] = [f"food-101/images/{name}/{i}.jpg" for name in listed]
        for k, path in enumerate(made[split]):
            write_image(root / path, 10 * i + k)
    return made


def eurosat(root: Path) -> dict[str, list[str]]:
    made = [f"eurosat/2750/{name}/{name}_1.jpg" for name in ("AnnualCrop", "River")]
    for k, path in enumerate(made):
        write_image(root / path, k)
    return {"train": made}


def imagenet(root: Path) -> dict[str, list[str]]:
    words = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    root.mkdir(exist_ok=True)
    torch.save((words, ["n01440764"]), root / "meta.bin")
    made = {
        split: [f"{folder}/{wnid}/1.JPEG" for wnid in words] for split, folder in (("train", "train"), ("test", "val"))
    }
    for k, path in enumerate(path for paths in made.values() for path in paths):
        write_image(root / path, k)
    return made


FILES: list[tuple[str, Callable[[Path], dict[str, list[str]]], list[int], int, tuple[str, str]]] = [
    ("Flowers102", flowers, [101, 0], 102, ("pink primrose", "hard-leaved pocket orchid")),
    ("OxfordIIITPet", pets, [0, 1], 2, ("Abyssinian", "Great Pyrenees")),
    ("Food101", food, [0, 1], 2, ("apple_pie", "waffles")),
    ("EuroSAT", eurosat, [0, 1], 2, ("AnnualCrop", "River")),
    ("ImageNet", imagenet, [0, 1], 2, ("tench", "goldfish")),
]


@pytest.mark.parametrize(("name", "make", "labels", "count", "classes"), FILES)
def test_data_sets_of_files_are_read(
    tmp_path: Path,
    name: str,
    make: Callable[[Path], dict[str, list[str]]],
    labels: list[int],
    count: int,
    classes: tuple[str, str],
) -> None:
    ids = make(tmp_path)
    source = open_source(name, str(tmp_path))
    parts = source.load()
    assert source.image_shape is None
    assert len(source.class_names) == count
    assert source.class_names[:2] == classes
    assert {split: part.ids for split, part in parts.items()} == ids
    assert parts["train"].labels.tolist() == labels
    for part in parts.values():
        assert isinstance(part.storage, FileImages)
        assert part.storage.unreadable(range(len(part))) == {}


def test_every_data_set_is_read_in_some_test() -> None:
    tested = {"MNIST", "FashionMNIST", "KMNIST", "EMNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10"}
    assert tested | {name for name, *_ in FILES} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_missing_data_set_names_source_root_and_remedy(tmp_path: Path, name: str) -> None:
    root = str(tmp_path / "root")
    with pytest.raises(InputError) as caught:
        open_source(name, root)
    message = str(caught.value)
    assert repr(name) in message
    assert repr(root) in message
    assert ("fetch its archives by hand" if name == "ImageNet" else "set download: true") in message
    assert ". " not in message
    assert "\n" not in message
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_failed_download_names_source_root_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    closed = "http://127.0.0.1:9/"  # a port that nobody listens on: a true failure, and a fast one
    monkeypatch.setattr(tv.MNIST, "mirrors", [closed])
    monkeypatch.setattr(tv.CIFAR10, "url", closed + "cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=f"source '{name}' could not be downloaded to") as caught:
        open_source(name, str(tmp_path / "root"), download=True)
    assert repr(str(tmp_path / "root")) in str(caught.value)
    assert "on a machine with a network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_existing_data_set_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tv.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    idx_set(tmp_path / "MNIST" / "raw", ("train", "t10k"), [1], packed=True)
    assert len(open_source("MNIST", str(tmp_path), download=True).load()["train"]) == 1


@pytest.mark.parametrize("missing", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"])
def test_incomplete_data_set_counts_as_missing(tmp_path: Path, missing: str) -> None:
    idx_set(tmp_path, ("train", "t10k"), [1], packed=True)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match="its IDX files were not found"):
        open_source("MNIST", str(tmp_path))


WHOLE = struct.pack(">HBBI", 0, 8, 1, 3) + b"abc"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x", b""),
        ("x", WHOLE[:6]),
        ("x", WHOLE[:-1]),
        ("x", WHOLE + b"d"),
        ("x", b"\0\0\x0d" + WHOLE[3:]),
        ("x.gz", WHOLE),
        ("x.gz", gzip.compress(WHOLE, mtime=0)[:-9]),
        ("x.gz", gzip.compress(WHOLE, mtime=0)[:10] + b"\xff" * 20),
    ],
    ids=["empty", "header cut", "cut", "too long", "other type", "not gzip", "gzip cut", "gzip spoiled"],
)
def test_damaged_idx_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"IDX file") as caught:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    (tmp_path / "good").write_bytes(WHOLE)
    assert read_idx(tmp_path / "good").tolist() == list(b"abc")


def test_different_numbers_of_images_and_labels_are_refused(tmp_path: Path) -> None:
    idx_set(tmp_path, ("train", "t10k"), [1, 2], packed=False)
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8), packed=False)
    with pytest.raises(InputError, match="2 images and 3 labels"):
        open_source("MNIST", str(tmp_path)).load()


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    idx_set(tmp_path / "MNIST" / "raw", ("train", "t10k"), [0, 10, 3], False)
    with pytest.raises(InputError, match="source 'MNIST': the train labels go from 0 to 10, and it has 10 classes"):
        open_source("MNIST", str(tmp_path)).load()
