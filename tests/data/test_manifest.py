import datetime
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sft_lightning.data.issues import Finding
from sft_lightning.data.vision.prediction_files import TableListing, open_prediction_source
from sft_lightning.data.vision.sources import open_source
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image

NAMES = [f"{i}.png" for i in range(8)]
ROWS = [(name, ("cat", "dog")[i % 2]) for i, name in enumerate(NAMES)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i, name in enumerate(NAMES):
        write_image(tmp_path / name, i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str | bytes, **settings: Any) -> dict[str, dict[str, str]]:
    """Return the label of each example, by split and id."""
    Path("m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_source("m.csv", **settings)


def read_source(name: str, **settings: Any) -> dict[str, dict[str, str]]:
    source = open_source(name, **settings)
    labels = [*source.class_names, ""]
    return {
        split: {name: labels[label] for name, label in zip(part.ids, part.labels.tolist(), strict=True)}
        for split, part in source.load().items()
    }


def listed(name: str, root: str = "data") -> list[tuple[str, str]]:
    """Return names and files of the images to predict."""
    found = open_prediction_source(name, root)
    assert isinstance(found, TableListing)
    return list(found)


def lines(separator: str = ",", end: str = "\n") -> str:
    return end.join([separator.join(row) for row in [("path", "label"), *ROWS]]) + end


@pytest.mark.parametrize(
    "text",
    [
        lines(),
        lines().removesuffix("\n"),
        lines(end="\r\n"),
        lines(end="\r"),
        lines(";"),
        lines("\t"),
        lines("|"),
        lines(", "),
        lines().encode("utf-8-sig"),
        lines().encode("utf-16"),
        b"\xfe\xff" + lines(";").encode("utf-16-be"),
        "sep=;\r\n" + lines(";", "\r\n"),
        "# made by hand, in 2024\n\n" + lines(),
        lines().replace("cat\n", "cat\n\n   \n,\n"),
        lines().replace("cat", '"cat"').replace("dog", ' "dog"'),
        lines().replace("\n", ",\n"),
        "".join(f"{i},{line}\n" for i, line in zip(["", *range(8)], lines().splitlines(), strict=True)),
        lines().replace("path,label", " PATH ,\ufeffLabel"),
        lines().replace("path,label", "'Path','LABEL'"),
        "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines().splitlines()),
        "\n".join(";".join(f'"{cell}"' for cell in line.split(",")) for line in lines().splitlines()),
        lines().replace("path,label", '"path", "label"'),
        "label,width,path\n" + "".join(f"{label},12,{name}\n" for name, label in ROWS),
        lines().replace("0.png", "./0.png").replace("1.png", "x/../1.png"),
        "path,label,note\n" + "".join(f'{name},{label},"one,\n two\n"\n' for name, label in ROWS),
    ],
)
def test_equivalent_tables_are_read_alike(text: str | bytes, place: Path) -> None:
    (place / "x").mkdir()
    found = read(text)
    assert {name.removeprefix("x/../"): label for name, label in found["train"].items()} == dict(ROWS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Quotes and cells.
        (lines().replace("2.png,cat", '2.png,"cat'), 'line 4: a quote (") opens a cell that it does not close'),
        (lines(end="\r\n").replace("2.png,cat", '2.png,"cat'), 'line 4: a quote (")'),
        (lines().replace("2.png,", '"2.png,'), 'line 4: a quote (")'),
        (lines().replace("2.png,cat", '2.png,"cat').replace("4.png,cat", '4.png,"cat'), 'line 4: a quote (")'),
        (lines().replace("2.png,cat", '2.png,"cat').replace("4.png,cat", '4.png,cat"'), "line 4: a quote that opens"),
        (lines().replace("2.png,cat", '2.png,"cat').replace("3.png,dog", '3.png,dog"'), "takes in the line below it"),
        (lines().replace("2.png,cat", '"2.png,cat').replace("4.png,", '4.png",'), "line 4: a quote that opens"),
        ("path,label,note\n0.png,cat,\"x\n1.png,dog,y\n2.png,cat,z\"\n", "a quote that opens in the column 'note'"),
        (lines().replace("2.png,cat", "2.png,cat, small"), "line 4: it has 3 cells and the header has 2: put quotes"),
        (lines().replace("2.png,cat", "2.png"), "line 4: it has 1 cell and the header has 2: write the ','"),
        (lines().replace("path,label", "path,label,split"), "line 2: it has 2 cells and the header has 3"),
        ('path,label\n0.png,"big\ncat"\n1.png', "line 2: a quote that opens in the column 'label'"),
        ('path,label\n0.png,"x""\ny"\n1.png,"a"b\n', "line 2: a quote that opens"),
        (lines().replace("2.png,cat", "2.png,c\0at"), "line 4: it has a NUL byte"),
        (lines().encode("utf-16-le"), "line 1: it has a NUL byte: save the table as UTF-8"),
        (
            lines().replace("cat", "k\u00e4t").encode("cp1252"),
            "m.csv', line 2: byte 8 (0xe4, '\u00e4' in Windows-1252) is not UTF-8 text: save it as 'CSV UTF-8' in",
        ),
        (lines().encode("utf-16")[:-1], "begins as UTF-16 text and is damaged: save it as UTF-8"),
        # Columns.
        ("path,label,label\n0.png,cat,dog\n", "has the column 'label' twice (columns 2 and 3)"),
        ("path,label,Label\n0.png,cat,dog\n", "has the column 'label' twice (columns 2 and 3)"),
        ("a,path,label,a\n1,0.png,cat,2\n", "has the column 'a' twice (columns 1 and 4)"),
        ("filename,class\n0.png,cat\n", "rename 'filename' to 'path' and 'class' to 'label'"),
        ("path,target\n0.png,cat\n", "lacks the column 'label'; its columns are 'path', 'target'"),
        ("path,label,\n0.png,cat,dog\n", "line 2: the cell 'dog' is in column 3, which has no name"),
        ("0.png,cat\n1.png,dog\n", "lacks the column 'path' and 'label'; its columns are '0.png', 'cat'"),
        # Splits and groups under another name.
        ("path,label,set\n0.png,cat,train\n1.png,dog,test\n", "'set' is not known, but its values (test, train)"),
        ("path,label,x\n0.png,cat,Training\n1.png,dog,dev\n", "are splits: rename it to 'split'"),
        ("path,label,phase\n0.png,cat,test\n1.png,dog,test\n", "are splits: rename it to 'split'"),
        ("path,label,is_test\n0.png,cat,0\n1.png,dog,1\n", "seems to say which examples are for 'test'"),
        ("path,label,Validation\n0.png,cat,no\n1.png,dog,yes\n", "seems to say which examples are for 'val'"),
        ("path,label,patient\n0.png,cat,a\n1.png,dog,a\n", "the column 'patient' is not known, but its values repeat"),
        ("path,label,Patient_ID\n0.png,cat,a\n1.png,dog,a\n", "rename it to 'group'"),
        ("path,label,videos\n0.png,cat,a\n1.png,dog,a\n", "rename it to 'group'"),
        ("path,label,SPLIT\n0.png,cat,tset\n", "split 'tset' is none of train, val, test, unlabeled or blank (did"),
        ("path,label,split\n0.png,cat,NA\n", "line 2: split 'NA' is none of"),
        ("path,label,group\n0.png,cat,P1\n1.png,dog,p1\n", "groups 'P1' (line 2) and 'p1' (line 3), which look alike"),
        # Labels.
        ("path,label\n0.png,Cat\n1.png,cat\n", "classes 'Cat' (line 2) and 'cat' (line 3), which look alike"),
        ("path,label\n0.png,1\n1.png,2\n2.png,1.0\n", "classes '1' (line 2) and '1.0' (line 4)"),
        ("path,label\n0.png,caf\u00e9\n1.png,cafe\u0301\n", r"(line 2) and 'cafe\u0301' (line 3)"),
        ("path,label\n0.png,cat\n1.png,c\u200bat\n", r"classes 'cat' (line 2) and 'c\u200bat' (line 3)"),
        ("path,label\n0.png,cat\n1.png,NA\n2.png,NA\n", "2 labels are 'NA' (first: line 3): leave the label blank"),
        ("path,label\n0.png,0\n1.png,1\n2.png,-1\n", "1 label is '-1' (first: line 4)"),
        ("path,label\n0.png,train\n1.png,test\n", "the labels ('train', 'test') are names of splits"),
        # Paths.
        ("path,label\n0.png,cat\nhttps://x.org/1.png,dog\n", "line 3: path 'https://x.org/1.png' is a URL: download"),
        ("path,label\n0.png,cat\ns3://x/1.png,dog\n", "is a URL"),
        ("path,label\n0.png,cat\n*.png,dog\n", "line 3: path '*.png' is a pattern: list each example"),
        ("path,label\n0.png,cat\nsub,dog\n", "line 3: path 'sub' is a folder: list each example"),
        ("path,label\n0.png,cat\n./0.png,cat\n", "line 3: '0.png' is already on line 2; list"),
        ("path,label\n0.png,cat\nsub/../0.png,cat\n", "line 3: 'sub/../0.png' is already on line 2, as '0.png'"),
        ("path,label\nsub/a.png,cat\nsub\\a.png,cat\n", "line 3: 'sub/a.png' is already on line 2"),
        ("path,label\n0.png,cat\nlink.png,dog\n", "line 3: 'link.png' is the file of line 2 by another name, with"),
        ("path,label\n0.png,cat\nhard.png,dog\n", "line 3: 'hard.png' is the file of line 2 by another name, with"),
    ],
)  # fmt: skip
def test_malformed_row_is_an_error_with_its_line(text: str | bytes, words: str, place: Path) -> None:
    write_image(place / "sub" / "a.png", 90)
    os.symlink("0.png", place / "link.png")
    os.link("0.png", place / "hard.png")
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read(text)
    assert str(caught.value).startswith("manifest 'm.csv'")
    assert "\n" not in str(caught.value)


def test_absolute_and_relative_path_are_the_same_file(place: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: .* is already on line 2, as '0.png'"):
        read(f"path,label\n0.png,cat\n{place}/0.png,cat\n")


def test_paths_that_differ_in_case_are_one_file_on_a_case_insensitive_file_system(place: Path) -> None:
    os.link("0.png", "0.PNG")  # as one file looks that has both names
    with pytest.raises(InputError, match=r"line 3: '0.PNG' is already on line 2, as '0.png'"):
        read("path,label\n0.png,cat\n0.PNG,cat\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label,width,id\n0.png,cat,1,2\n", "the columns are ignored: 'width', 'id' (known are path, label,"),
        ("path,label,patient\n0.png,cat,a\n1.png,dog,b\n", "the column 'patient' is ignored; if it holds the group"),
        ("path,label,site\n0.png,cat,a\n1.png,dog,a\n", "the column 'site' is ignored; if it holds the group of"),
        ("path,label,fold\n0.png,cat,0\n1.png,dog,1\n", "the column 'fold' is ignored; if it holds the split"),
        ("path,label,kfold\n0.png,cat,0\n1.png,dog,1\n", "the column 'kfold' is ignored; if it holds the split"),
        ("path,label,MRN\n0.png,cat,0\n1.png,dog,1\n", "the column 'MRN' is ignored; if it holds the group"),
        (
            "path,label\n0.png,0.0\n1.png,1.0\n2.png,\n",
            "the labels are whole numbers written as decimals, such as '0.0'",
        ),
        ("path,label\n0.png,cat\n1.png,dog\n2.png,cat | dog\n", "the label 'cat | dog' is read as one class"),
        ("path,label\n0.png,'cat'\n1.png,dog\n", "the class name \"'cat'\" has quotes in it"),
        ("path,label,split,set\n0.png,cat,,train\n1.png,dog,,test\n", "the column is ignored: 'set'"),
        ("path,label\n0.png,cat\n1.png,unknown\n", "1 label is 'unknown' (first: line 3), which is read as a class"),
        ("path,label\n0.png,a\n1.png,A\n", "the classes 'a' (line 2) and 'A' (line 3) differ in case alone"),
        ("path,label\n0.png,cat\n1.png,dog\u200b\n", r"the class name 'dog\u200b' has characters that cannot be seen"),
        (
            "path,label,group\n0.png,cat,NA\n1.png,dog,NA\n",
            "the group of 2 examples is 'NA', which keeps them together",
        ),
        (
            "path,label\n0.png,cat\nlink.png,cat\n",
            "1 line names a file that another line names by another link (line 3",
        ),
    ],
)
def test_ambiguous_tables_give_a_warning(text: str, sentence: str, place: Path) -> None:
    os.symlink("0.png", place / "link.png")
    (place / "m.csv").write_text(text)
    (message,) = open_source("m.csv").messages
    assert str(message).startswith(f"manifest 'm.csv': {sentence}")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("path,label\n0.png,Cat\n1.png,cat\n", ["Cat", "cat"]),
        ("path,label\n0.png,cat\n1.png,NA\n", ["cat", "NA"]),
        ("path,label\n0.png,cat\n1.png,unknown\n", ["cat", "unknown"]),
        ("path,label\n0.png,test\n1.png,train\n", ["train", "test"]),
        ("path,label\n0.png,0.0\n1.png,1.0\n", ["0.0", "1.0"]),
    ],
)
def test_class_names_that_the_user_listed_are_accepted(text: str, meant: list[str], place: Path) -> None:
    assert sorted(read(text, listed_classes=meant)["train"].values()) == sorted(meant)
    assert not open_source("m.csv", listed_classes=meant).messages


def test_synonyms_of_splits_are_understood(place: Path) -> None:
    words = ["Train", "training", "VALID", "validation ", "dev", "Testing", "unlabelled", ""]
    rows = [f"{name},{label},{word}" for (name, label), word in zip(ROWS, words, strict=True)]
    found = read("path,label,Split\n" + "\n".join(rows))
    assert {split: [*ids] for split, ids in found.items()} == {
        "train": ["0.png", "1.png", "7.png"],
        "val": ["2.png", "3.png", "4.png"],
        "test": ["5.png"],
        "unlabeled": ["6.png"],
    }


# --- root and backslashes


def test_paths_relative_to_root_are_found(place: Path) -> None:
    write_image(place / "images" / "r" / "x.png", 50)
    write_image(place / "lists" / "own.png", 51)
    (place / "lists" / "m.csv").write_text("path,label\nr/x.png,cat\nown.png,dog\nr\\x.png,cat\n")
    with pytest.raises(InputError, match=r"line 4: 'r/x.png' is already on line 2"):
        open_source("lists/m.csv", root="images")
    (place / "lists" / "m.csv").write_text("path,label\nr/x.png,cat\nown.png,dog\n")
    assert read_source("lists/m.csv", root="images") == {"train": {"r/x.png": "cat", "own.png": "dog"}}
    assert listed("lists/m.csv", "images") == [
        ("r/x.png", "images/r/x.png"),
        ("own.png", "lists/own.png"),
    ]
    for opened in (open_source, open_prediction_source):
        with pytest.raises(InputError, match=r"line 2: file 'r/x.png' does not exist below 'lists'"):
            opened("lists/m.csv", root="nowhere")
    write_image(place / "images" / "own.png", 52)
    for opened in (open_source, open_prediction_source):
        with pytest.raises(InputError, match=r"line 3: path 'own.png' is a file in 'lists' and another one in root"):
            opened("lists/m.csv", root="images")
    (place / "images" / "own.png").unlink()
    os.link("lists/own.png", "images/own.png")  # the same file
    assert len(read_source("lists/m.csv", root="images")["train"]) == 2


def test_backslashes_separate_folders(place: Path) -> None:
    write_image(place / "a" / "b" / "x.png", 60)
    write_image(place / "odd\\name.png", 61)
    text = "path,label\na\\b\\x.png,cat\nodd\\name.png,dog\n"
    assert read(text) == {"train": {"a/b/x.png": "cat", "odd\\name.png": "dog"}}
    assert [Path(file).is_file() for _, file in listed("m.csv")] == [True, True]


def test_escaped_spreadsheet_formula_is_restored(place: Path) -> None:
    write_image(place / "=1.png", 70)
    assert read("path,label\n'=1.png,'-x\n0.png,cat\n") == {"train": {"=1.png": "-x", "0.png": "cat"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('path\n"0.png\n1.png\n', 'line 2: a quote (")'),
        ("path,label\n0.png,a,b\n", "line 2: it has 3 cells"),
        ("path\nhttp://x/1.png\n", "is a URL"),
        ("file\n0.png\n", "rename 'file' to 'path'"),
        ("Path,Path\n0.png,1.png\n", "has the column 'path' twice"),
    ],
)
def test_tables_to_predict_are_read_as_strictly(text: str, words: str, place: Path) -> None:
    (place / "m.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        open_prediction_source("m.csv")


def test_tables_to_predict_may_have_any_other_columns(place: Path) -> None:
    (place / "m.csv").write_text("set;PATH;patient;label\ntest;0.png;a;NA\ntrain;1.png;a;na\n")
    assert [name for name, _ in listed("m.csv")] == ["0.png", "1.png"]


# --- Parquet


def write(**columns: Any) -> None:
    parquet.write_table(pa.table(columns), "m.parquet")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, None, 1], ["0", "", "1"]),
        ([0.0, float("nan"), 1.0], ["0", "", "1"]),
        ([0.5, None, 1.0], ["0.5", "", "1"]),
        ([b"cat", None, b"dog"], ["cat", "", "dog"]),
        ([True, None, False], ["True", "", "False"]),
        ([Decimal("1.00"), None, Decimal("2.00")], ["1", "", "2"]),
        (pa.array(["cat", None, "dog"]).dictionary_encode(), ["cat", "", "dog"]),
        (pa.array(["cat", None, "dog"], pa.large_string()), ["cat", "", "dog"]),
        (pa.array([0, None, 1], pa.uint8()), ["0", "", "1"]),
    ],
)
def test_parquet_labels_are_read_as_text(labels: Any, expected: list[str], place: Path) -> None:
    write(Path=NAMES[:3], label=labels)
    found = read_source("m.parquet")
    assert {**found["train"], **found["unlabeled"]} == dict(zip(NAMES, expected, strict=False))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [["cat"], ["dog"]]}, "line 1: the column 'label' holds a list (\"['cat']\"): write text or numbers"),
        ({"label": [{"a": 1}, None]}, "line 1: the column 'label' holds a dict"),
        ({"label": ["a", "b"], "group": [["a"], ["b"]]}, "line 1: the column 'group' holds a list"),
        ({"label": [datetime.datetime(2024, 1, 1), None]}, "line 1: the column 'label' holds a datetime"),
        ({"label": [b"a", b"\xff"]}, "line 2: the column 'label' holds bytes that are not text"),
        ({"label": ["a", "NA"]}, "1 label is 'NA' (first: line 2)"),
        ({"label": ["a", "b"], "set": ["train", "test"]}, "the column 'set' is not known"),
        ({"label": ["a", "b"], "set": pa.array(["train", "test"]).dictionary_encode()}, "the column 'set' is not"),
        ({"label": ["a", "b"], "is_test": [True, False]}, "the column 'is_test' is not known"),
        ({"label": ["a", "b"], "patient": [3, 3]}, "the column 'patient' is not known"),
        ({"label": ["a", "b"], "Label": ["a", "b"]}, "has the column 'label' twice"),
        ({"class": ["a", "b"]}, "rename 'class' to 'label'"),
    ],
)
def test_parquet_columns_of_the_wrong_type_are_refused(columns: dict[str, Any], words: str, place: Path) -> None:
    write(path=NAMES[:2], **columns)
    with pytest.raises(InputError, match=re.escape(words)):
        open_source("m.parquet")


def test_parquet_paths_must_be_text(place: Path) -> None:
    write(path=[1, 2], label=["a", "b"])
    for opened in (open_source, open_prediction_source):
        with pytest.raises(InputError, match=r"line 1: the column 'path' holds a int \('1'\): write text$"):
            opened("m.parquet")


def test_parquet_groups_may_be_dates(place: Path) -> None:
    write(path=NAMES[:2], label=["a", "b"], Group=[datetime.date(2024, 1, 1)] * 2, other=[[1], [2]])
    source = open_source("m.parquet")
    assert source.load()["train"].groups == ["2024-01-01"] * 2
    message = "manifest 'm.parquet': the column is ignored: 'other' (known are path, label, split, group)"
    assert source.messages == [Finding("ignored", message, ["other"])]
