"""Evaluate a run on other data, and recognize images whose labels the run or its start learned."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from sft_lightning.cli.run_config import _find_starts
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image
from tests.data.run_helpers import SETTINGS, collect_ids, join_messages, make_data, read_recorded_ids, write_run


def drop_contents(run: Path) -> None:
    """Make a split like those of versions that recorded no content."""
    head, *lines = (run / "split.csv").read_text().splitlines()
    (run / "split.csv").write_text("\n".join([head, *(line.rpartition(",")[0] for line in lines)]) + "\n")


def write_new_images(folder: Path, count: int, first: int = 0) -> Path:
    """Write different images under the names of the run's images."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(first, first + count):
            write_image(folder / name / f"{i}.png", 5000 + 100 * c + i)
    return folder


def test_different_images_with_the_same_names_are_other_data(source: Path, run: Path, tmp_path: Path) -> None:
    other = write_new_images(tmp_path / "other", 20)
    now = make_data(other, run)
    assert len(collect_ids(now)["test"]) == 40
    assert "all of its labeled examples are evaluated" in join_messages(now)
    with pytest.raises(InputError, match="holds other examples: continue with the same data"):
        make_data(other, run, "fit")


@pytest.mark.parametrize(("changed", "is_same"), [(4, True), (6, False)])
def test_data_with_half_of_the_held_out_images_is_the_data_of_the_run(
    source: Path, run: Path, tmp_path: Path, changed: int, is_same: bool
) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    held_out = read_recorded_ids(run)["val"] + read_recorded_ids(run)["test"]
    assert len(held_out) == 10
    for k, name in enumerate(held_out[:changed]):
        write_image(copy / name, 7000 + k)
    now = make_data(copy, run)
    assert ("is not the data of the run" in join_messages(now)) is not is_same
    assert len(collect_ids(now)["test"]) == (6 if is_same else 32)  # of 40 without the 8 that it was trained on


@pytest.mark.parametrize(("gone", "is_same"), [(5, True), (6, False)])
def test_half_of_the_held_out_images_may_be_missing(
    source: Path, run: Path, tmp_path: Path, gone: int, is_same: bool
) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    for name in (read_recorded_ids(run)["test"] + read_recorded_ids(run)["val"])[-gone:]:
        (copy / name).unlink()
    assert ("is not the data of the run" in join_messages(make_data(copy, run))) is not is_same


@pytest.mark.parametrize(("gone", "is_same"), [(0, True), (1, False)])
def test_moved_source_of_an_earlier_version_needs_all_held_out_names(
    source: Path, run: Path, tmp_path: Path, gone: int, is_same: bool
) -> None:
    drop_contents(run)
    copy = shutil.copytree(source, tmp_path / "copy")
    write_image(copy / "cat" / "new.png", 777)
    for name in read_recorded_ids(run)["test"][:gone]:
        (copy / name).unlink()
    now = make_data(copy, run)
    assert ("is not the data of the run" in join_messages(now)) is not is_same
    if is_same:
        assert collect_ids(now) == read_recorded_ids(run)


def test_images_that_a_start_of_the_run_learned_are_left_out_of_other_data(
    source: Path, run: Path, tmp_path: Path
) -> None:
    start = write_run(make_data(write_new_images(tmp_path / "before", 20), stage="fit"), tmp_path / "start")
    other = write_new_images(tmp_path / "other", 3, first=50)
    learned = read_recorded_ids(start)["labeled"][0]
    shutil.copy(tmp_path / "before" / learned, other / "cat" / "learned.png")
    data = ImageDataModule(**{"source": str(other), **SETTINGS, "on_leak": "raise"})  # which is for new splits
    data.followed_run, data.starts = run, [start / "split.csv"]
    data.setup("test")
    assert collect_ids(data)["test"] == [f"{c}/{i}.png" for c in ("cat", "dog") for i in (50, 51, 52)]
    assert f"1 of 7 test examples are labeled training examples of {start} ('cat/learned.png')" in join_messages(data)


def test_unlabeled_images_of_other_data_are_not_evaluated(source: Path, run: Path, tmp_path: Path) -> None:
    other = write_new_images(tmp_path / "other" / "train", 3, first=50).parent
    write_image(other / "unlabeled" / "0.png", 6000)
    assert collect_ids(make_data(other, run))["test"] == [
        f"train/{c}/{i}.png" for c in ("cat", "dog") for i in (50, 51, 52)
    ]


@pytest.mark.parametrize("has_contents", [True, False])
@pytest.mark.parametrize("part", ["val", "test"])
def test_images_that_a_start_learned_are_left_out_of_each_held_out_split(
    source: Path, run: Path, part: str, has_contents: bool
) -> None:
    if not has_contents:
        drop_contents(run)
    learned = set(read_recorded_ids(run)["labeled"])
    plain = collect_ids(make_data(source, stage="fit", seed=1))[part]
    assert learned & set(plain)
    data = ImageDataModule(**{"source": str(source), **SETTINGS, "seed": 1})
    data.starts = [run / "split.csv"]
    data.setup("fit")
    assert collect_ids(data)[part] == [name for name in plain if name not in learned]


def test_names_of_a_start_without_digests_count_only_in_the_same_source(
    source: Path, run: Path, tmp_path: Path
) -> None:
    drop_contents(run)
    data = ImageDataModule(**{"source": str(write_new_images(tmp_path / "other", 20)), **SETTINGS, "seed": 1})
    data.starts = [run / "split.csv"]
    data.setup("fit")
    assert (len(data.splits["test"]), join_messages(data)) == (6, "")


def test_test_split_that_a_start_learned_completely_is_refused(source: Path, run: Path) -> None:
    text = (run / "split.csv").read_text()
    count = len(read_recorded_ids(run)["test"]) + len(read_recorded_ids(run)["labeled"])
    text = (
        text.replace(",test,", ",labeled,")
        .replace('"labeled": 8', f'"labeled": {count}')
        .replace('"test": 6', '"test": 0')
    )
    (run / "split.csv").write_text(text)
    data = ImageDataModule(**{"source": str(source), **SETTINGS})
    data.starts = [run / "split.csv"]
    with pytest.raises(InputError, match=r"6 of 6 test examples are labeled training examples of .* and none is left"):
        data.setup("fit")


@pytest.fixture
def start_from(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        torch.save({}, tmp_path / name / "checkpoints" / "last.ckpt")
        for file in ("fit.yaml", "split.csv"):
            (tmp_path / name / file).touch()
        return tmp_path / name

    return make


def test_checkpoints_and_weight_files_name_the_splits_they_learned(start_from: Callable[[str], Path]) -> None:
    first, second = start_from("first"), start_from("second")

    def starts(**settings: str) -> list[Path]:
        return _find_starts(Namespace(model={"init_args": settings}))[0]

    assert starts(weights=str(first)) == [first / "split.csv"]
    assert starts(weights="none", head_weights=str(second)) == [second / "split.csv"]
    assert starts(weights=str(first), head_weights=str(second)) == [first / "split.csv", second / "split.csv"]
    assert starts(weights=str(first), head_weights=str(first)) == [first / "split.csv"]
    assert starts(weights="default") == []
