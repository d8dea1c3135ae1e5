"""Labels that are sets of classes: read, named, numbered, divided and written back."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_lightning import TextDataModule
from sft_lightning.data.label_sets import LabelSets, show_label
from sft_lightning.data.set_splits import choose_by_share, choose_of_each, join_units
from sft_lightning.utils.errors import InputError
from tests.tasks.helpers import CLASSES, write_texts


def test_order_and_blanks_of_a_label_make_no_difference() -> None:
    sets = LabelSets(["b;a", "a", ";", " a ; b "], ";")
    assert (sets.class_names, sets.names) == (("a", "b"), (";", "a", "a;b"))
    assert [sets.find(label) for label in ("b ;a;", "a;b", ";", "a")] == [2, 2, 0, 1]
    assert sets.rows.tolist() == [[0, 0], [1, 0], [1, 1], [-1, -1]]
    assert [show_label(name, sets) for name in ("", *sets.names)] == ["", "no class", "a", "a + b"]
    assert show_label("a;b", None) == "a;b"
    assert sets.count(torch.tensor([2, 2, 0, -1, 1])).tolist() == [3, 2]


def test_the_classes_of_a_run_decide_the_columns() -> None:
    sets = LabelSets(["a", "c;a"], ";", ["c", "b", "a"])
    assert (sets.names, sets.rows.tolist()) == (("a", "c;a"), [[0, 0, 1], [1, 0, 1], [-1, -1, -1]])
    with pytest.raises(InputError, match=r"a label names the class 'd', which the run or class_names does not know"):
        LabelSets(["a;d"], ";", ["a"])


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_each_class_keeps_its_share(share: float) -> None:
    counts = (np.random.default_rng(0).random((1000, 6)) < [0.5, 0.3, 0.1, 0.03, 0.02, 0.01]).astype(np.int64)
    total = int(share * len(counts))
    chosen = choose_by_share(counts, np.ones(len(counts), dtype=np.int64), total)
    assert len({*chosen}) == len(chosen) == total
    assert np.abs(counts[chosen].sum(0) - share * counts.sum(0)).max() <= 1.5
    few = choose_by_share(counts, np.ones(len(counts), dtype=np.int64), 12, at_least_one=True)
    assert len(few) == 12
    assert (counts[few].sum(0) >= 1).all()


def test_groups_are_divided_whole() -> None:
    counts = (np.random.default_rng(0).random((300, 3)) < 0.4).astype(np.int64)
    groups = [f"g{i % 60}" for i in range(300)]
    units, sizes, members = join_units(counts, groups)
    assert (len(units), int(sizes.sum())) == (60, 300)
    assert units.tolist() == [counts[own].sum(0).tolist() for own in members]
    chosen = [k for unit in choose_by_share(units, sizes, 60) for k in members[unit]]
    assert abs(len(chosen) - 60) <= 3
    assert {groups[k] for k in chosen}.isdisjoint({groups[k] for k in {*range(300)} - {*chosen}})
    assert np.abs(counts[chosen].sum(0) - 0.2 * counts.sum(0)).max() <= 4


def test_every_class_gets_its_number_of_labels() -> None:
    counts = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    chosen = choose_of_each(counts, 2)
    assert (counts[chosen].sum(0) >= 2).all()
    assert len(chosen) <= 5


def open_texts(path: Path, **settings: object) -> TextDataModule:
    data = TextDataModule(str(path), label_separator=";", **settings)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_a_table_gives_targets_of_0_and_1(tmp_path: Path) -> None:
    rows = write_texts(tmp_path / "texts.csv", 300)
    data = open_texts(tmp_path / "texts.csv", val_size=0.2, test_size=0.2, num_labels=60)
    assert (data.class_names, data.num_classes, data.target) == ([*CLASSES], len(CLASSES), "class_set")
    assert [len(data.splits[name]) for name in ("labeled", "val", "test")] == [60, 38, 48]
    truth = {f"line {i + 2}": label for i, (_, label) in enumerate(rows)}
    for name in ("labeled", "val", "test"):
        (y,) = {tuple(map(tuple, torch.cat([b.y for b in data.batches_of(name, torch.device("cpu"))]).tolist()))}
        for example, row in zip(data.splits[name].ids, y, strict=True):
            listed = {*filter(None, truth[example].split(";"))}
            assert {c for c, is_in in zip(CLASSES, row, strict=True) if is_in} == listed
    assert data.labeled_counts().tolist() == [int(k) for k in torch.tensor(y_of(data)).sum(0)]
    assert data.labeled_counts().min() >= 1
    shares = [torch.tensor(y_of(data, name)).double().mean(0) for name in ("val", "test")]
    everything = torch.tensor([[c in label.split(";") for c in CLASSES] for _, label in rows if label]).double().mean(0)
    for share in shares:
        assert (share - everything).abs().max() < 0.04
    data.write_splits(tmp_path / "split.csv", data.splits)
    again = open_texts(tmp_path / "texts.csv", split_file=str(tmp_path / "split.csv"))
    assert {name: split.ids for name, split in again.splits.items()} == {
        name: split.ids for name, split in data.splits.items()
    }
    assert y_of(again) == y_of(data)


def y_of(data: TextDataModule, name: str = "labeled") -> list[list[int]]:
    return data.make_targets(data.splits[name].labels).tolist()


def test_a_file_of_labels_may_name_a_new_set_of_known_classes(tmp_path: Path) -> None:
    rows = write_texts(tmp_path / "texts.csv", 120)
    blank = [f"line {i + 2}" for i, (_, label) in enumerate(rows) if not label][:2]
    labels = tmp_path / "labels.csv"
    labels.write_text(f"id,label\n{blank[0]},{';'.join(reversed(CLASSES))}\n{blank[1]},;\n")
    data = open_texts(tmp_path / "texts.csv", labels=str(labels), val_size=0, test_size=0)
    found = dict(zip(data.splits["labeled"].ids, y_of(data), strict=True))
    assert [found[name] for name in blank] == [[1] * len(CLASSES), [0] * len(CLASSES)]
    labels.write_text(f"id,label\n{blank[0]},elephant;{CLASSES[0]}\n")
    with pytest.raises(InputError, match="a label names the class 'elephant'"):
        open_texts(tmp_path / "texts.csv", labels=str(labels), class_names=[*CLASSES])


@pytest.mark.parametrize(("separator", "words"), [
    ("|", r"label_separator is '\|', which is in no label of"), (" ", "label_separator is ' ': give a character"),
])  # fmt: skip
def test_a_separator_that_separates_nothing_is_refused(tmp_path: Path, separator: str, words: str) -> None:
    write_texts(tmp_path / "texts.csv", 60)
    with pytest.raises(InputError, match=words):
        TextDataModule(str(tmp_path / "texts.csv"), label_separator=separator).setup("fit")


def test_joined_labels_without_a_separator_are_reported(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 120)
    source = TextDataModule(str(tmp_path / "texts.csv")).source
    assert any("if examples have several classes, set label_separator" in str(message) for message in source.messages)
    data = open_texts(tmp_path / "texts.csv")
    assert not any("is read as one class" in str(finding) for finding in data.request.findings)


def test_classes_that_look_alike_are_refused_within_sets(tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"word {i}", ("Cat;dog", "cat")[i % 2]) for i in range(20))])
    with pytest.raises(InputError, match=r"has the classes .*, which look alike"):
        open_texts(tmp_path / "texts.csv")


def test_examples_of_no_class_count_toward_the_number_of_labels(tmp_path: Path) -> None:
    rows = [("text", "label"), *((f"text {i}", "a;b" if i < 4 else ";") for i in range(40))]
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = TextDataModule(str(tmp_path / "texts.csv"), label_separator=";", num_labels=20)
    data.setup("fit")
    assert len(data.splits["labeled"]) == 20  # more than the classes have examples


def test_a_held_out_set_needs_training_examples_of_its_classes_not_of_the_set(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    rows = [("a b", "x", "train"), ("c d", "y;z", "train"), ("e f", "z;x", "test"), ("g h", ";", "test")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    data = TextDataModule(str(path), label_separator=";", val_size=0)
    data.setup("fit")
    assert data.make_targets(data.splits["test"].labels).tolist() == [[1, 0, 1], [0, 0, 0]]
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(("i j", "x;w", "test"))
    with pytest.raises(InputError, match="line 6: no training example has the class 'w' of this test example"):
        TextDataModule(str(path), label_separator=";", val_size=0).setup("fit")
