import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.folder_source import FolderSource
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.sources import FASHION, SampleSource, open_source, open_unlabeled
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, write_image, write_table


def test_sample_holds_what_it_promises() -> None:
    source = open_source("sample")
    parts = source.load()
    assert isinstance(source, SampleSource)
    assert source.class_names == FASHION
    assert source.image_shape == (1, 28, 28)
    assert {name: len(part) for name, part in parts.items()} == {"train": 10_000, "test": 2_000}
    for part, each in ((parts["train"], 1_000), (parts["test"], 200)):
        assert part.labels.bincount().tolist() == [each] * 10
    trousers, sandals = (_mean(parts["train"].images, parts["train"].labels == c) for c in (1, 5))
    assert trousers[0, :, 14].mean() > 2 * trousers[0, :, 4].mean()  # a narrow thing in the middle
    assert sandals[0, :8].mean() < 10  # and a flat one


def _mean(images: object, mask: torch.Tensor) -> torch.Tensor:
    assert isinstance(images, TensorStorage)
    return images.data[mask].float().mean(0)


def test_sample_digits_are_unlabeled() -> None:
    source = open_source("sample-digits")
    parts = source.load()
    assert source.class_names == ()
    assert list(parts) == ["unlabeled"]
    assert len(parts["unlabeled"]) == 10_000
    assert parts["unlabeled"].labels.unique().tolist() == [-1]


@pytest.mark.parametrize("prefix", ["train/", ""])
def test_class_folders_nested_or_flat(folder: MakeFolder, prefix: str) -> None:
    path = folder(f"{prefix}cat", f"{prefix}dog", f"{prefix}dog/puppies", "unlabeled/more", "val/dog")
    write_image(path / f"{prefix}cat" / ".hidden.png", 1)
    (path / f"{prefix}cat" / "notes.txt").write_text("not an image")
    source = open_source(str(path))
    parts = source.load()
    assert isinstance(source, FolderSource)
    assert source.class_names == ("cat", "dog")
    assert parts["train"].ids[:4] == [f"{prefix}cat/{i}.png" for i in range(3)] + [f"{prefix}dog/0.png"]
    assert f"{prefix}dog/puppies/2.png" in parts["train"].ids
    assert parts["train"].labels.tolist() == [0] * 3 + [1] * 6
    assert parts["unlabeled"].ids == [f"unlabeled/more/{i}.png" for i in range(3)]
    assert parts["unlabeled"].labels.tolist() == [-1] * 3
    assert parts["val"].labels.tolist() == [1] * 3
    assert "test" not in parts


def test_a_class_may_be_named_like_a_split(folder: MakeFolder) -> None:
    source = open_source(str(folder("train/test", "train/val")))
    assert source.class_names == ("test", "val")
    assert list(source.load()) == ["train"]


@pytest.mark.parametrize("name", ["", "unlabeled", "train"])
def test_pictures_without_classes_are_unlabeled(folder: MakeFolder, name: str) -> None:
    source = open_source(str(folder(name)))
    (part,) = source.load().values()
    assert source.class_names == ()
    assert part.labels.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        ([], lambda p: p.mkdir(), ["set", "holds no image", "CLASS/image.png"]),
        (["train/a"], lambda p: (p / "train/b").mkdir(), ["class folder", "train/b", "holds no image"]),
        (["train/cats", "val/cat"], None, ["class 'cat'", "/val", "/train", "did you mean 'cats'?"]),
        (["train/a", "test/b"], None, ["class 'b'", "/test", "does not exist"]),
        (["train/a"], lambda p: write_image(p / "train/x.png", 1), ["train/x.png", "beside the class folders"]),
    ],
)
def test_folder_errors_name_the_place(folder: MakeFolder, names: list[str], change: object, words: list[str]) -> None:
    path = folder(*names) if names else folder("x").parent / "set2"
    if callable(change):
        change(path)
    with pytest.raises(InputError) as caught:
        open_source(str(path))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder", "'no/such/folder' is neither a folder or manifest"),
        ("FashonMNIST", "did you mean 'FashionMNIST'"),
        ("missing.csv", "'missing.csv' does not exist"),
        ("CIFAR10/x", "CIFAR10 has no variants"),
        ("EMNIST/leters", "did you mean 'letters'"),
        (__file__, "is a single file"),
    ],
)
def test_wrong_source_is_one_sentence(name: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)


HEADER = ("path", "label", "split", "group")


def filled(*rows: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Rows as long as the header, which all rows must be."""
    return [(*row, *[""] * (len(HEADER) - len(row))) for row in rows]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k, name in enumerate("abcdefgh"):
        write_image(tmp_path / f"{name}.png", k)
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifest_parts_labels_and_groups(images: Path, encoding: str) -> None:
    rows = [
        (" path ", "label", "split", "group", "remark"),
        ("a.png", "10", "", "p1", "x"),
        ("b.png", " 2 ", "Train", "", ""),
        ("c.png", "", "", "p1", ""),
        ("d.png", "2", "val", "p2", ""),
        ("e.png", "10", "test", "", ""),
        ("f.png", "2", "unlabeled", "", ""),
        ("g.png", "", "train", "", ""),
    ]
    source = open_source(str(write_table(images / "m.csv", rows, encoding)))
    parts = source.load()
    assert isinstance(source, ManifestSource)
    assert source.class_names == ("2", "10")
    assert {name: part.ids for name, part in parts.items()} == {
        "train": ["a.png", "b.png", "g.png"],
        "val": ["d.png"],
        "test": ["e.png"],
        "unlabeled": ["c.png", "f.png"],
    }
    assert parts["train"].labels.tolist() == [1, 0, -1]
    assert parts["unlabeled"].labels.tolist() == [-1, 0]
    groups = parts["train"].groups
    assert groups is not None
    assert groups[0] == "p1"
    assert len(set(groups)) == 3


def test_group_of_a_line_without_one_does_not_depend_on_the_order_of_lines(images: Path) -> None:
    rows = [("a.png", "x", "", "p"), ("b.png", "x", "", ""), ("c.png", "y", "", "")]
    named = []
    for order in (rows, rows[::-1]):
        part = open_source(str(write_table(images / "m.csv", [HEADER, *order]))).load()["train"]
        assert part.groups is not None
        named.append(dict(zip(part.ids, part.groups, strict=True)))
    assert named[0] == named[1]


def test_parquet_reads_as_csv(images: Path) -> None:
    columns = {"path": ["a.png", "b.png", "c.png"], "label": [1, 0, None], "group": ["p", None, None]}
    parquet.write_table(pa.table(columns), images / "m.parquet")
    write_table(
        images / "m.csv", [("path", "label", "group"), ("a.png", "1", "p"), ("b.png", "0", ""), ("c.png", "", "")]
    )
    one, two = (open_source(str(images / name)) for name in ("m.parquet", "m.csv"))
    assert one.class_names == two.class_names == ("0", "1")
    for split, part in one.load().items():
        other = two.load()[split]
        assert (part.ids, part.labels.tolist(), part.groups) == (other.ids, other.labels.tolist(), other.groups)


def test_parquet_not_a_number_is_a_blank_label(images: Path) -> None:
    parquet.write_table(pa.table({"path": ["a.png", "b.png"], "label": [1.0, float("nan")]}), images / "m.parquet")
    source = open_source(str(images / "m.parquet"))
    assert source.class_names == ("1",)
    assert source.load()["unlabeled"].ids == ["b.png"]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_class_order_holds_with_a_class_named_nan(images: Path, first: int) -> None:
    labels = ["nan", "7", "b"]
    rows = list(zip(["a.png", "b.png", "c.png"], labels[first:] + labels[:first], strict=True))
    path = write_table(images / "m.csv", [HEADER[:2], *rows])
    assert open_source(str(path), listed_classes=labels).class_names == ("7", "b", "nan")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "lacks the column 'path' and 'label'; its columns are none"),
        ([("file", "label"), ("a.png", "x")], "lacks the column 'path'; its columns are 'file', 'label'"),
        ([("file",), ("a.png",)], "needed are path,label[,split][,group]: rename 'file' to 'path'"),
        ([("file", "Class_Name"), ("a.png", "x")], ": rename 'file' to 'path' and 'Class_Name' to 'label'"),
        ([HEADER], "has no line below its header"),
        ([HEADER, ("a.png", "x"), ("zzz.png", "x")], "line 3: file 'zzz.png' does not exist below"),
        ([HEADER, ("", "x")], "line 2: the path is blank"),
        ([HEADER, ("a.png", ""), ("b.png", "")], "has no labels"),
        ([HEADER, ("a.png", "x"), ("b.png", "x", "tset")], "line 3: split 'tset' is none of train, val, test"),
        ([HEADER, ("a.png", "x"), ("b.png", "", "test")], "line 3: split 'test' needs a label"),
        ([HEADER, ("a.png", "x"), ("b.png", "x"), ("./a.png", "y")], "line 4: 'a.png' is already on line 2"),
        (
            [HEADER, ("a.png", "x", "train", "p"), ("b.png", "x", "test", "p")],
            "group 'p' is in train (line 2) and test (line 3)",
        ),
        (
            [HEADER, ("a.png", "", "", "p"), ("b.png", "x", "val", "p")],
            "group 'p' is in train (line 2) and val (line 3)",
        ),
        ([HEADER, ("a.png", "cat"), ("b.png", "cta", "val")], "line 3: no training example has the class 'cta'"),
    ],
)
def test_manifest_errors_name_the_line(images: Path, rows: list[tuple[str, ...]], words: str) -> None:
    path = write_table(images / "m.csv", filled(*rows) if HEADER in rows else rows)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", "path,label\nä.png,x\n".encode("latin-1"), "is not UTF-8 text"),
        ("m.csv", b'path,label\n"a' + b"a" * 200_000, r"line 2: a quote \(\"\) opens a cell that it does not close"),
        ("m.parquet", b"no parquet at all", "is not a readable Parquet file"),
        ("m.parquet", b"", "is not a readable Parquet file"),
    ],
)
def test_unreadable_manifest_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_source(str(tmp_path / name))


def test_manifest_of_evaluation_pictures_alone_is_fine(images: Path) -> None:
    source = open_source(
        str(write_table(images / "m.csv", filled(HEADER, ("a.png", "x", "test"), ("b.png", "y", "test"))))
    )
    assert list(source.load()) == ["test"]


def test_unlabeled_source_gives_training_and_unlabeled_pictures_without_labels(folder: MakeFolder) -> None:
    path = folder("train/a", "unlabeled", "test/a")
    part = open_unlabeled(str(path))
    assert part.ids == [f"{path}:train/a/{i}.png" for i in range(3)] + [f"{path}:unlabeled/{i}.png" for i in range(3)]
    assert part.labels.tolist() == [-1] * 6
    assert isinstance(part.storage, FileImages)
    assert part.storage.paths[3] == path / "unlabeled" / "0.png"


def test_unlabeled_source_with_nothing_to_train_on_is_refused(images: Path) -> None:
    path = write_table(images / "m.csv", filled(HEADER, ("a.png", "x", "test")))
    with pytest.raises(InputError, match="has no training or unlabeled example"):
        open_unlabeled(str(path))
