"""Each layout of folders is read as intended or refused with a message; ignored files are reported."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.data.split_names import UNCLEAR, find_split, mentions_split
from sft_lightning.data.vision.sources import open_source, open_unlabeled
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # one name, composed and decomposed


def layout(root: Path, *folders: str) -> Path:
    """Make folders with two images each, and a file for each name with an extension."""
    for k, name in enumerate(folders):
        if Path(name).suffix:
            write_image(root / name, 100 * k) if name.endswith(".png") else write(root / name, b"words")
        else:
            for i in range(2):
                write_image(root / name / f"{i}.png", 100 * k + i)
    return root


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAIN", "training", "Training Set", "train2017")),
        *((name, "val") for name in ("val", "valid", "validation", "Validation", "dev", "val_set", "validation-data")),
        *((name, "test") for name in ("test", "Test", "testing", "test1", "images_test", "testset", "TestImages")),
        *((name, "unlabeled") for name in ("unlabeled", "unlabelled", "unlabeled_data", "No Labels", "un-labeled")),
        *((name, UNCLEAR) for name in ("eval", "Evaluation", "holdout", "held_out")),
        *((name, None) for name in ("cat", "trainer", "contest", "valley", "invalid", "data", "12", "@eaDir")),
    ],
)  # fmt: skip
def test_find_split_understands_folder_names(name: str, split: str | None) -> None:
    assert find_split(name) == split
    assert not mentions_split(name)


@pytest.mark.parametrize(
    ("folders", "classes", "sizes", "said"),
    [
        (
            ["Train/a", "Train/b", "Test/a", "Test/b"],
            "a b",
            {"train": 4, "test": 4},
            ["Test' is read as the split test", "Train' is read as the split train"],
        ),
        (
            ["train/a", "train/b", "valid/a", "valid/b"],
            "a b",
            {"train": 4, "val": 4},
            ["valid' is read as the split val"],
        ),
        (
            ["training/a", "training/b", "validation/b", "testing/a"],
            "a b",
            {"train": 4, "val": 2, "test": 2},
            ["testing' is", "training' is", "validation' is"],
        ),
        (
            ["TRAIN/a", "TRAIN/b", "dev/a"],
            "a b",
            {"train": 4, "val": 2},
            ["TRAIN' is", "dev' is read as the split val"],
        ),
        (["a", "b", "unlabelled"], "a b", {"train": 4, "unlabeled": 2}, ["unlabelled' is read as the split unlabeled"]),
        (["a", "b", "Unlabeled Data/x/y"], "a b", {"train": 4, "unlabeled": 2}, ["Unlabeled Data' is read as"]),
        (["train/a", "train/b", "no_label"], "a b", {"train": 4, "unlabeled": 2}, ["no_label' is read as"]),
        (["a", "b", "val/a"], "a b", {"train": 4, "val": 2}, []),
        (["test/a", "test/b"], "a b", {"test": 4}, []),
        (["Testing/a", "Testing/b", "val/c"], "a b c", {"test": 4, "val": 2}, ["Testing' is read as the split test"]),
        (["a", "b", "@eaDir/a"], "a b", {"train": 4}, ["ignored 1 hidden or system folder in '.*': 1 @eaDir"]),
        (
            ["a", "b", "a/@eaDir/x", "b/@eaDir", "__MACOSX/a", "a/.thumbnails"],
            "a b",
            {"train": 4},
            ["4 hidden or system folders in '.*': 2 @eaDir, 1 .thumbnails, 1 __MACOSX"],
        ),
        (
            ["train/a", "train/b", "train/$RECYCLE.BIN/x", "lost+found", "#recycle/a", "System Volume Information/x"],
            "a b",
            {"train": 4},
            ["4 hidden or system folders"],
        ),
        (
            ["a", "b", "a/.ipynb_checkpoints", "unlabeled/@Recycle/x", "unlabeled/y"],
            "a b",
            {"train": 4, "unlabeled": 2},
            ["2 hidden or system folders"],
        ),
        (
            ["train/a", "train/b", "masks/a"],
            "a b",
            {"train": 4},
            ["images in masks are not read: only folders of splits are"],
        ),
        (
            ["train/a", "train/b", "x.png", "y.png"],
            "a b",
            {"train": 4},
            ["2 images in '.*' itself, beside '.*train', belong to no split or class"],
        ),
        (
            ["a", "b", "x.txt", "a/y.txt", "b/z.json"],
            "a b",
            {"train": 4},
            ["ignored 3 files in '.*' that are not images: 2 .txt, 1 .json"],
        ),
        (["a", "b", "test_strip"], "a b test_strip", {"train": 6}, ["folder 'test_strip' in '.*' is read as a class"]),
        (
            ["train/unlabelled", "train/b"],
            "b unlabelled",
            {"train": 4},
            ["folder 'unlabelled' in '.*train' is read as a class"],
        ),
        (
            ["train/a", "train/b", "train/unsup", "test/a", "test/b"],
            "a b",
            {"train": 4, "test": 4, "unlabeled": 2},
            ["folder '.*train/unsup' is read as the split unlabeled"],
        ),
        (
            ["train/a", "train/b", "train/unsup", "test/a", "test/unsup"],
            "a b unsup",
            {"train": 6, "test": 4},
            ["folder 'unsup' in '.*train' is read as a class"],
        ),
        ([f"train/{COMPOSED}", "train/b", f"val/{DECOMPOSED}"], f"b {COMPOSED}", {"train": 4, "val": 2}, []),
        (["1", "2", "10"], "1 2 10", {"train": 6}, []),
        (["a/x", "a/y", "b/x"], "a b", {"train": 6}, []),
    ],
)
def test_folder_layout_is_read_as_intended(
    folders: list[str], classes: str, sizes: dict[str, int], said: list[str], tmp_path: Path
) -> None:
    source = open_source(str(layout(tmp_path / "set", *folders)))
    assert sorted(source.class_names) == sorted(classes.split())
    parts = source.load()
    assert {split: len(part) for split, part in parts.items()} == sizes
    for part in parts.values():  # each image has the class of its folder
        for name, label in zip(part.ids, part.labels.tolist(), strict=True):
            folder = name.removeprefix("./").split("/")
            own = [c for c in source.class_names if any(_same(c, piece) for piece in folder[:-1])]
            assert label < 0 or source.class_names[label] in own
    assert len(source.messages) == len(said), source.messages
    assert all(re.search(words, str(one)) for words, one in zip(said, source.messages, strict=True)), source.messages


def _same(a: str, b: str) -> bool:
    return a == b or {a, b} == {COMPOSED, DECOMPOSED}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (
            ["train/a", "train/b", "val/a", "valid/a"],
            "folders 'val' and 'valid' in '.*' both mean the split val: join them",
        ),
        (["Train/a", "train/b"], "folders 'Train' and 'train' in '.*' both mean the split train"),
        (["a", "b", "unlabeled/x", "unlabelled/x"], "both mean the split unlabeled"),
        (["train/a", "train/b", "eval/a"], "set/eval' may mean validation or test: rename it to val or test"),
        (["a", "b", "Holdout"], "set/Holdout' may mean validation or test"),
        (
            ["car", "bus", "train"],
            "train' holds images and no class folders, and bus, car lie beside it: if 'train' is a class",
        ),
        (["invalid", "valid"], "valid' means the split val and holds images.*if 'valid' is a class, move all"),
        (["a", "b", "Test"], "Test' means the split test and holds images, such as '.*0.png', but no class folders"),
        (
            ["dataset/train/a", "dataset/train/b"],
            "holds only the folder 'dataset', which would.*holds train: give '.*set/dataset' as",
        ),
        (
            ["dataset/dataset/train/a", "dataset/dataset/Test/a"],
            "only the folder 'dataset/dataset'.*holds Test, train: give '.*set/dataset/dataset'",
        ),
        (
            ["images/cat", "images/dog", "labels.csv"],
            "only the folder 'images'.*holds cat, dog: give '.*set/images' as the source",
        ),
        (
            ["images/cat", "images/dog", "@eaDir", "__MACOSX/images/cat"],
            "only the folder 'images'.*give '.*set/images'",
        ),
        (["images/cat", "images/dog", "unlabeled"], "only class.*holds cat, dog: rename it to 'train'"),
        (
            ["train/images/cat", "train/images/dog", "val/images/cat"],
            "train' holds only the folder 'images'.*move these up into '.*train'",
        ),
        (["train_old/a", "train_old/b", "test_old/a"], "test_old' is named like a split and holds folders"),
        ([COMPOSED, DECOMPOSED], r"folder '.*set' has the classes 'cafe\\u0301' and 'caf\u00e9', which look alike"),
        (["Cat", "cat", "dog"], "folder '.*set' has the classes 'Cat' and 'cat', which look alike"),
        (["train/cat", "train/cat ", "val/cat"], "folder '.*train' has the classes 'cat' and 'cat ', which look alike"),
        (["cat", "c\u200bat"], r"classes .*'c\\u200bat'.*, which look alike"),
        (["train/Cat", "val/cat"], "class 'cat' in '.*val' does not exist in '.*train' \\(did you mean 'Cat'"),
        (
            ["train/a", "train/b/x.heic", "val/a"],
            "b' holds no image: add some.*; ignored 1 file in '.*b' of a .*: 1 .heic; convert",
        ),
        (["a.txt", ".a/x.png", "@eaDir/y"], "no image.*ignored 1 file in.*1 .txt; ignored 2 hidden"),
    ],
)
def test_ambiguous_folder_layout_is_refused(folders: list[str], words: str, tmp_path: Path) -> None:
    path = layout(tmp_path / "set", *folders)
    with pytest.raises(InputError, match=words) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)


def test_second_unlabeled_source_reports_ignored_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = layout(tmp_path / "more", "x", "@eaDir", "Unlabelled", "notes.txt")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert len(open_unlabeled(str(path))) == 4
    assert "Unlabelled' is read as the split unlabeled." in caplog.text
    assert "hidden or system folder" in caplog.text
    assert "1 .txt" in caplog.text


def test_folder_names_are_compared_as_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a case-insensitive file system, `train` exists if the folder is called `Train`; the listed name counts."""
    path = layout(tmp_path / "set", "Train/a", "Train/b")
    os.symlink("Train", path / ".hidden")  # and what is hidden is no second one
    real: Callable[[Path], bool] = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda p: real(p) or (p.name == "train" and real(p.with_name("Train"))))
    assert open_source(str(path)).load()["train"].ids[0] == "Train/a/0.png"


def test_a_table_of_groups_beside_class_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{('cat', 'dog', 'unlabeled')[k % 3]}/{k}.png" for k in range(24)]
    for k, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * k, np.uint8)).save(tmp_path / name)
    lines = [f"{name},animal {k // 6}\n" for k, name in enumerate(names)]
    (tmp_path / "groups.csv").write_text("path,group\n" + "".join(lines))
    data = ImageDataModule(str(tmp_path), image_size=8, val_size=4, test_size=4, num_workers=0)
    data.setup("fit")
    where: dict[str, set[bool]] = {}
    for split, one in data.splits.items():
        assert one.part.groups is not None
        for i in one.indices:
            where.setdefault(one.part.groups[i], set()).add(split in ("val", "test"))
    assert {*where} == {f"animal {k}" for k in range(4)}
    assert all(len(one) == 1 for one in where.values())
    assert {True} in where.values()
    assert "ignored" not in caplog.text
    (tmp_path / "groups.csv").write_text("path,group\ncat/0.pgn,a\n")
    with pytest.raises(InputError, match=r"groups.csv', line 2: the source has no file 'cat/0.pgn'.*did you mean"):
        ImageDataModule(str(tmp_path), image_size=8, num_workers=0).setup("fit")
