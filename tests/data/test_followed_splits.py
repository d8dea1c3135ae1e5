"""Splits of runs whose split file is damaged or missing, or whose images are partly missing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.data.split_files import read_rows
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image
from tests.data.run_helpers import join_messages, make_data, read_recorded_ids, write_run


def truncate(text: str) -> str:
    return text[: text.rindex("\n", 0, len(text) // 2) + 1]


def move_test_into_training(text: str) -> str:
    return text.replace(",test,", ",labeled,")


def list_a_training_image_for_test(text: str) -> str:
    line = next(line for line in text.splitlines(keepends=True) if ",labeled," in line)
    return text + line.replace(",labeled,", ",test,")


@pytest.mark.parametrize("is_start", [False, True])
@pytest.mark.parametrize("stage", ["fit", "test", "calibrate"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "labeled examples, and the run had|test examples, and the run had"),
        (move_test_into_training, "it lists 14 labeled examples, and the run had 8"),
        (list_a_training_image_for_test, "it lists '.*' twice"),
    ],
)
def test_damaged_split_file_is_refused(
    source: Path, run: Path, damage: Callable[[str], str], reason: str, stage: str, is_start: bool
) -> None:
    file = run / "split.csv"
    file.write_text(damage(file.read_text()))
    data = ImageDataModule(str(source), image_size=8, num_workers=0, num_labels=8, test_size=6, val_size=4)
    if is_start:
        data.starts = [file]
    else:
        data.followed_run = run
    with pytest.raises(InputError, match=f"cannot be read .*({reason}).*: put back the file"):
        data._make_splits(stage)


def test_supervised_run_resumes_without_its_unlabeled_images(source: Path, run: Path) -> None:
    unlabeled = read_recorded_ids(run)["unlabeled"]
    for name in unlabeled:
        (source / name).unlink()
    assert len(make_data(source, run, "fit").splits["labeled"]) == 8
    assert f"{len(unlabeled)} examples are gone or unreadable" in join_messages(make_data(source, run, "fit"))


def test_data_of_a_run_is_recognized_among_new_images(source: Path, run: Path) -> None:
    write_image(source / "cat" / "new.png", 777)
    data = make_data(source).as_trained(run)
    assert {name: split.ids for name, split in data.splits.items()} == read_recorded_ids(run)
    assert [row.id for row in read_rows(run / "split.csv") if row.split == "val"] == data.splits["val"].ids


def test_duplicate_class_name_is_refused(source: Path) -> None:
    data = ImageDataModule(str(source), image_size=8, num_workers=0, class_names=["dog", "cat", "dog"])
    with pytest.raises(InputError, match="class_names has 'dog' twice: name each class once"):
        data.setup("fit")


def test_run_is_evaluated_without_its_second_unlabeled_source(source: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "unlabeled_only" / f"{i}.png", i)
    settings: dict[str, Any] = {"unlabeled_source": str(tmp_path / "unlabeled_only")}
    run = write_run(make_data(source, stage="fit", **settings), tmp_path / "run")
    shutil.rmtree(tmp_path / "unlabeled_only")
    now = make_data(source, run, "test", **settings)
    assert now.splits["test"].ids == read_recorded_ids(run)["test"]
    assert "3 examples are gone or unreadable (3 unlabeled)" in join_messages(now)
    with pytest.raises(InputError, match="unlabeled_only' is neither a folder or manifest that exists"):
        make_data(source, run, "fit", **settings)
