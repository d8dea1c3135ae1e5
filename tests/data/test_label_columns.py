"""Labels as one column of 0 and 1 for each class: the same data as labels that are joined by a separator."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.data.label_columns import LabelColumns
from sft_lightning.data.splits import NAMES
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.text.tables import Columns, TextTable
from sft_lightning.utils.errors import InputError
from tests.tasks.helpers import CLASSES, write_images, write_texts

ROWS = [("a", "1", "0", ""), ("b", "0", "0", "0"), ("c", "", "", ""), ("d", "1", "1.0", "1")]


def split_columns(source: Path, target: Path, prefix: str = "") -> Path:
    """Rewrite a table of joined labels with a column for each class."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(iter(rows[0]))
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([first, *(prefix + name for name in CLASSES)])
        for row in rows:
            marks = [int(name in row["label"].split(";")) for name in CLASSES] if row["label"] else [""] * len(CLASSES)
            writer.writerow([row[first], *marks])
    return target


def write(path: Path, rows: Sequence[Sequence[str]] = ROWS, names: Sequence[str] = ("text", "x", "y", "z")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.mark.parametrize("kind", ["texts", "images"])
@pytest.mark.parametrize("prefix", ["", "is_"])
def test_columns_give_the_data_of_joined_labels(kind: str, prefix: str, tmp_path: Path) -> None:
    make: type[TextDataModule] | type[ImageDataModule] = TextDataModule if kind == "texts" else ImageDataModule
    joined = tmp_path / f"{kind}.csv"
    if kind == "texts":
        write_texts(joined, 80)
    else:
        write_images(tmp_path, 40)
    table = split_columns(joined, tmp_path / "columns.csv", prefix)
    given = "is_*" if prefix else [*CLASSES]
    one, other = make(str(joined), label_separator=";"), make(str(table), label_columns=given)
    assert other.class_names == one.class_names == [*CLASSES]
    assert other.target == "class_set"
    one.setup("fit")
    other.setup("fit")
    for name in NAMES:
        assert [*other.splits[name].ids] == [*one.splits[name].ids]
        assert torch.equal(other.make_targets(other.splits[name].labels), one.make_targets(one.splits[name].labels))
    assert other.name_targets(torch.tensor([[1, 0, 1], [0, 0, 0]])) == ["food;sport", ";"]
    assert one.source_key != other.source_key


def test_each_format_reads_the_same_labels(tmp_path: Path) -> None:
    labels = ["x", ";", "", "x;y;z"]
    numbers = [[None if cell == "" else float(cell) for cell in row[1:]] for row in ROWS]
    names = ["path", "x", "y", "z"]
    write(tmp_path / "m.csv", names=names)
    rows = [dict(zip(names, [row[0], *own], strict=True)) for row, own in zip(ROWS, numbers, strict=True)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    marks = [[None if cell is None else cell > 0 for cell in own] for own in numbers]
    columns = [[row[0] for row in ROWS], *map(list, zip(*marks, strict=True))]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), tmp_path / "m.parquet")
    for file in ("m.csv", "m.jsonl", "m.parquet"):
        for setting in (("x", "y", "z"), ("z", "y", "x")):
            table = TableRows(tmp_path / file, label_columns=LabelColumns(setting))
            expected = [
                ";".join(sorted(label.split(";"), key=setting.index)) if "y" in label else label for label in labels
            ]
            assert [row["label"] for _, row in table] == expected
            assert table.column_classes == setting
            (finding,) = [one for one in table.messages if "blank" in one.message]
            assert "1 line leaves some of label_columns blank, which counts as 0" in finding.message
        texts = TextTable(tmp_path / file, Columns(text="path"), True, LabelColumns(("x", "y", "z")))
        assert [row.label for row in texts] == labels
        assert any("1 line leaves some of label_columns blank" in one.message for one in texts.findings)
        assert not any("not read" in one.message for one in texts.findings)


def test_a_pattern_names_the_classes_in_natural_order_and_lists_keep_theirs(tmp_path: Path) -> None:
    names = ("text", "t10_tag", "t2_tag", "_tag")
    path = write(tmp_path / "t.csv", [("a", "1", "0", "0"), ("b", "0", "1", "1"), ("c", "1", "1", "1")], names)
    assert TextDataModule(str(path), label_columns="t*_tag").class_names == ["2", "10"]
    assert TextDataModule(str(path), label_columns=["t2_tag", "t10_tag"]).class_names == ["t2_tag", "t10_tag"]


def test_a_class_that_no_row_has_keeps_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [(f"text {i}", str(i % 2), "0", "1") for i in range(20)])
    data = TextDataModule(str(path), label_columns=["x", "y", "z"])
    data.setup("fit")
    assert data.class_names == ["x", "y", "z"]
    assert any("has no example of the class 'y', which keeps its number" in str(one) for one in data.request.findings)


def test_each_row_with_one_class_needs_no_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [("a", "1", "0", "0"), ("b", "0", "1", "0"), ("c", "0", "0", "1")])
    assert TextDataModule(str(path), label_columns=["x", "y", "z"]).class_names == ["x", "y", "z"]


def test_other_tables_need_no_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv")
    data = TextDataModule(str(path), label_columns=["x", "y", "z"])
    (tmp_path / "new.csv").write_text("text\nhello\n")
    assert len(data.open_unlabeled(str(tmp_path / "new.csv"))) == 1
    assert data.open_to_predict(str(tmp_path / "new.csv")).class_names == ()


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([("a", "1", "2", "0")], {}, r"t\.csv', line 2: the column 'y' is '2': write 1 where the example has"),
        ([("a", "1", "0", "0"), ("b", "0", "x", "")], {}, r"line 3: the column 'y' is 'x': write 1"),
        ([("a", "", "", "")], {}, r"has no labels: fill label_columns of some lines"),
        (ROWS, {"label_columns": ["x", "yy"]}, r"lacks the column 'yy' of label_columns \(did you mean 'y'\?\);"),
        (ROWS, {"label_columns": "q*"}, r"has no column like label_columns 'q\*'; its columns are 'text', 'x'"),
        (ROWS, {"label_columns": "x"}, r"label_columns is 'x': give a list of columns, or a pattern with one \*"),
        (ROWS, {"label_columns": []}, r"label_columns is \[\]: name one column for each class"),
        (ROWS, {"label_columns": ["x", "x"]}, r"names the column 'x' twice"),
        (ROWS, {"label_columns": ["x;y"]}, r"makes the class 'x;y', and ';' separates classes: rename the column"),
        (ROWS, {"label_separator": ";"}, r"label_separator is ';' and label_columns is \['x', 'y', 'z'\]: set one"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    rows: list[tuple[str, ...]], settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", rows)
    given: dict[str, object] = {"label_columns": ["x", "y", "z"], **settings}
    with pytest.raises(InputError, match=words):
        _ = TextDataModule(str(path), **given).class_names  # type: ignore[arg-type]


def test_folders_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("hello")
    with pytest.raises(InputError, match=r"label_columns is 'x\*', and source '.*' has no columns: give a table"):
        _ = TextDataModule(str(tmp_path), label_columns="x*").class_names
