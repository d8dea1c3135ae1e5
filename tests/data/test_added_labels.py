"""Labels beside a source (`labels`), added to its own or in their place, and every file that depends on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.__main__ import main
from sft_lightning.data.added_labels import LabeledSource
from sft_lightning.data.digests import digest_file
from sft_lightning.data.label_files import LabelRow, read_label_rows, write_label_rows
from sft_lightning.data.split_files import read_rows
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, write_image, write_table
from tests.data.run_helpers import collect_ids, join_messages, write_run
from tests.modality.vectors import VectorDataModule

SPLIT = ("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")
Labels = dict[str, str]


def write_labels(path: Path, labels: Labels) -> str:
    write_label_rows(path, [LabelRow(name, label) for name, label in labels.items()])
    return str(path)


@pytest.fixture
def split_folder(folder: MakeFolder) -> Path:
    """Three images of each class in each split, and four unlabeled ones."""
    home = folder(*SPLIT)
    for i in range(4):
        write_image(home / "unlabeled" / f"{i}.png", seed=9000 + i)
    return home


def open_data(source: Path, labels: str | None, **settings: Any) -> ImageDataModule:
    data = ImageDataModule(str(source), labels=labels, **{"image_size": 8, "num_workers": 0, **settings})
    data.setup("fit")
    return data


def named_labels(data: ImageDataModule, split: str) -> Labels:
    part = data.splits[split]
    return {name: data.class_names[k] for name, k in zip(part.ids, part.labels.tolist(), strict=True) if k >= 0}


def test_unlabeled_images_become_training_images_with_their_label(split_folder: Path, tmp_path: Path) -> None:
    before = open_data(split_folder, None)
    added = {"unlabeled/2.png": "dog", "unlabeled/0.png": "cat"}
    data = open_data(split_folder, write_labels(tmp_path / "l.csv", added))
    assert named_labels(data, "labeled") == {**named_labels(before, "labeled"), **added}
    assert data.splits["unlabeled"].ids == ["unlabeled/1.png", "unlabeled/3.png"]
    assert {name: collect_ids(data)[name] for name in ("val", "test")} == {
        name: collect_ids(before)[name] for name in ("val", "test")
    }
    batch = data.inputs_of("labeled", [6])  # reads the moved file
    assert batch.equal(before.inputs_of("unlabeled", [0]))
    assert not [one for one in data.request.findings if one.kind == "replaced_label"]


def test_labels_replace_those_of_the_source_and_are_reported(split_folder: Path, tmp_path: Path) -> None:
    given = {"train/cat/0.png": "dog", "train/cat/1.png": "cat", "test/dog/2.png": "cat", "val/dog/0.png": "dog"}
    data = open_data(split_folder, write_labels(tmp_path / "l.csv", given))
    assert named_labels(data, "labeled")["train/cat/0.png"] == "dog"
    assert named_labels(data, "test")["test/dog/2.png"] == "cat"  # keeps its split
    findings = [one for one in data.request.findings if one.kind == "replaced_label"]
    assert [sorted(one.examples) for one in findings] == [["test/dog/2.png", "train/cat/0.png"], ["test/dog/2.png"]]
    assert f"replaces 2 labels of {split_folder}: train/cat/0.png, test/dog/2.png" in findings[0].message
    assert "changes what is measured, by the labels of 1 example in validation or test: test/dog/2.png" in str(
        findings[1]
    )


def test_rows_with_a_status_or_without_a_label_are_ignored(split_folder: Path, tmp_path: Path) -> None:
    names = [f"unlabeled/{i}.png" for i in range(4)]
    rows = [LabelRow(names[0], "cat"), LabelRow(names[1], "dog", "skip"), LabelRow(names[2], "dog", "unsure")]
    write_label_rows(tmp_path / "l.csv", [*rows, LabelRow(names[3], "")])
    data = open_data(split_folder, str(tmp_path / "l.csv"))
    assert data.splits["unlabeled"].ids == names[1:]
    assert [row[:3] for row in read_label_rows(tmp_path / "l.csv")] == [row[:3] for row in rows] + [(names[3], "", "")]


def test_a_source_without_labels_takes_the_classes_of_the_file(tmp_path: Path) -> None:
    for i in range(8):
        write_image(tmp_path / "plain" / f"{i}.png", seed=i)
    given = {f"{i}.png": ("class 10", "class 2")[i % 2] for i in range(5)}
    file = write_labels(tmp_path / "l.csv", given)
    settings: dict[str, Any] = {"val_size": 0, "test_size": 0}
    data = open_data(tmp_path / "plain", file, **settings)
    assert data.class_names == ["class 2", "class 10"]
    assert named_labels(data, "labeled") == given
    assert sorted(data.splits["unlabeled"].ids) == ["5.png", "6.png", "7.png"]
    listed = open_data(tmp_path / "plain", file, class_names=["class 10", "other", "class 2"], **settings)
    assert listed.class_names == ["class 10", "other", "class 2"]
    assert named_labels(listed, "labeled") == given
    assert "has no example of the class 'other'" in join_messages(listed)
    write_labels(tmp_path / "l.csv", {"0.png": "Cat", "1.png": "cat"})
    with pytest.raises(InputError, match=r"l.csv' has the classes 'Cat' \(line 2\) and 'cat' \(line 3\), which look"):
        open_data(tmp_path / "plain", file)
    write_labels(tmp_path / "l.csv", {"0.png": "cat", "1.png": "NA"})
    with pytest.raises(InputError, match=r"l.csv': 1 label is 'NA' \(first: line 3\): leave the label blank"):
        open_data(tmp_path / "plain", file)


def test_a_table_may_leave_all_its_labels_to_the_file(tmp_path: Path) -> None:
    for i in range(6):
        write_image(tmp_path / f"{i}.png", seed=i)
    table = write_table(tmp_path / "t.csv", [["path", "label"], *[[f"{i}.png", ""] for i in range(6)]])
    with pytest.raises(InputError, match=r"t.csv' has no labels: fill the column 'label'"):
        open_data(table, None)
    given = {f"{i}.png": "ab"[i % 2] for i in range(4)}
    data = open_data(table, write_labels(tmp_path / "l.csv", given), val_size=0, test_size=0)
    assert named_labels(data, "labeled") == given


def test_further_classes_are_listed_in_class_names(split_folder: Path, tmp_path: Path) -> None:
    file = write_labels(tmp_path / "l.csv", {"unlabeled/0.png": "bird"})
    with pytest.raises(InputError, match=r"line 2: source '.*' does not have the class 'bird'; known are 'cat', 'dog'"):
        open_data(split_folder, file)
    data = open_data(split_folder, file, class_names=["bird", "cat", "dog", "fish"])
    assert named_labels(data, "labeled")["unlabeled/0.png"] == "bird"
    assert named_labels(data, "labeled")["train/dog/1.png"] == "dog"
    assert "has no example of the class 'fish'" in join_messages(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\nunlabeled/0.png,cta\n", r"line 2: .*does not have the class 'cta' \(did you mean 'cat'\?\)"),
        ("id,label\nunlabeled/0.png,cat\nunlabeled/9.png,cat\n", r"line 3: .* the example 'unlabeled/9.png' \(did you"),
        ("id,label\nx/3.png,cat\nx/2.png,dog\n", r"'x/3.png' \(and of 1 more\).*: give names as in split.csv, or set"),
        ("id,label,status\n0.png,cat,skpi\n", r"line 2: status 'skpi' is none of .* \(did you mean 'skip'\?\)"),
        ("id;label\n0.png;cat\n", "lacks the column 'id' and 'label'; its columns are 'id;label'"),
        ("", "lacks the column 'id' and 'label'; its columns are none"),
        ("id,label\na,b.png,cat\n", "line 2: it has 3 cells and the header has 2: quote a cell"),
        ("id,label\n,cat\n", "line 2: the id is blank"),
        ("id,label\n0.png,cat\n\n0.png,cat\n", "line 4: '0.png' is already on line 2: keep one"),
        ('id,label\n"0.png,cat\n', "is not readable as CSV"),
        ("id,label\n\xff.png,cat\n", "is not UTF-8 text: save it as 'CSV UTF-8'"),
        (None, r"cannot be read \(No such file or directory\): give a CSV with id,label"),
    ],
)
def test_wrong_files_are_one_sentence(split_folder: Path, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "l.csv"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said) as raised:
        open_data(split_folder, str(file))
    assert str(raised.value).startswith(f"labels '{file}'")


def test_names_that_a_spreadsheet_would_run_are_read_back(tmp_path: Path) -> None:
    names = ["=1+1.png", "'=2.png", "-x,y.png", 'a"b\n.png', "日本.png"]
    rows = [LabelRow(name, "=cat") for name in names]
    write_label_rows(tmp_path / "l.csv", rows)
    assert [row[:3] for row in read_label_rows(tmp_path / "l.csv")] == [row[:3] for row in rows]
    assert "\n'=1+1.png,'=cat,\n" in (tmp_path / "l.csv").read_text()


def test_the_original_source_is_found_behind_both_wrappers(split_folder: Path, tmp_path: Path) -> None:
    file = write_labels(tmp_path / "l.csv", {"unlabeled/0.png": "dog"})
    data = open_data(split_folder, file, class_names=["dog", "cat"])
    assert data.source.original is data.opened_source
    assert isinstance(data.labeled_source, LabeledSource)


def test_other_modalities_take_labels(tmp_path: Path) -> None:
    rows = [["label", "split", "x"], *[["ab"[i % 2] if i < 8 else "", "train", str(i)] for i in range(20)]]
    table = write_table(tmp_path / "v.csv", rows)
    file = write_labels(tmp_path / "l.csv", {"row 9": "b", "row 0": "b"})
    data = VectorDataModule(str(table), labels=file, num_workers=0)
    data.setup("fit")
    labeled = {name: k for part in data.splits.values() for name, k in zip(part.ids, part.labels.tolist(), strict=True)}
    assert (labeled["row 9"], labeled["row 0"], labeled["row 10"]) == (1, 1, -1)


def test_a_resumed_run_keeps_its_split_when_labels_were_added(split_folder: Path, tmp_path: Path) -> None:
    file = write_labels(tmp_path / "l.csv", {"unlabeled/0.png": "dog"})
    first = open_data(split_folder, file)
    run = write_run(first, tmp_path / "run")
    write_labels(tmp_path / "l.csv", {"unlabeled/0.png": "cat", "unlabeled/1.png": "cat"})
    data = ImageDataModule(str(split_folder), labels=file, image_size=8, num_workers=0)
    data.followed_run = run
    data.setup("fit")
    assert {name: sorted(ids) for name, ids in collect_ids(data).items()} == {
        name: sorted(ids) for name, ids in collect_ids(first).items()
    }
    assert "another label than in the run: unlabeled/0.png (dog then, cat now)" in join_messages(data)


def test_a_run_records_the_labels(
    split_folder: Path, tmp_path: Path, workdir: Path, cli_error: Callable[..., str]
) -> None:
    file = write_labels(tmp_path / "l.csv", {"unlabeled/0.png": "dog", "unlabeled/1.png": "cat"})
    options = [
        "--config=quickstart/fine_tune.yaml", f"--data.init_args.source={split_folder}", "--run_name=r",
        "--data.init_args.image_size=8", "--data.init_args.num_labels=null", "--data.init_args.steps_per_epoch=1",
        "--data.init_args.num_workers=0", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", *options, f"--data.init_args.labels={file}"]) == 0
    run = Path("lightning_logs/r/version_0")
    rows = {row.id: row for row in read_rows(run / "split.csv")}
    assert rows["unlabeled/0.png"][1:3] == ("labeled", "dog")
    link = json.loads((run / "lineage.json").read_text())[-1]
    assert (link["labels"], link["labels_sha256"]) == (file, digest_file(Path(file)))
    assert main(["lineage", str(run)]) == 0
    assert main(["test", str(run)]) == 0
    Path(file).unlink()
    assert "l.csv', which" in cli_error("test", str(run))
    wrong = write_labels(tmp_path / "w.csv", {"unlabeled/0.png": "doggy"})
    assert "did you mean 'dog'?" in cli_error("fit", *options, f"--data.init_args.labels={wrong}")
