import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.data.split_files import LEFT_OUT, read_rows
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import write_image
from tests.data.run_helpers import SETTINGS, collect_ids, join_messages, make_data, read_recorded_ids, write_run


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_unchanged_data_gets_the_split_of_the_run_without_messages(source: Path, run: Path, stage: str) -> None:
    again = make_data(source, run, stage)
    assert collect_ids(again) == read_recorded_ids(run)
    assert join_messages(again) == ""


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_messages_of_a_new_split_are_repeated_for_the_same_split(source: Path, tmp_path: Path, stage: str) -> None:
    for i in range(20):
        shutil.copy(source / "cat" / f"{i}.png", source / "cat" / f"copy_{i}.png")
    first = make_data(source, stage="fit")
    assert "cat/copy_" in join_messages(first)
    again = make_data(source, write_run(first, tmp_path / "run"), stage)
    assert collect_ids(again) == collect_ids(first)
    assert join_messages(again) == join_messages(first)


def test_removed_images_are_reported_and_not_replaced(source: Path, run: Path) -> None:
    then = read_recorded_ids(run)
    for name in then["test"][:2] + then["labeled"][:1]:
        (source / name).unlink()
    now = make_data(source, run)
    assert collect_ids(now) == {**then, "test": then["test"][2:], "labeled": then["labeled"][1:]}
    assert (
        f"3 examples are gone or unreadable (1 labeled, 2 test): {then['labeled'][0]}, {then['test'][0]}"
        in join_messages(now)
    )


def test_run_without_any_of_its_test_images_is_not_tested(source: Path, run: Path) -> None:
    for name in read_recorded_ids(run)["test"]:
        (source / name).unlink()
    with pytest.raises(InputError, match="no longer has any of the 6 test examples of the run"):
        make_data(source, run)


def test_new_images_are_reported_and_left_out(source: Path, run: Path) -> None:
    write_image(source / "cat" / "new.png", 777)
    for stage in ("fit", "test"):
        now = make_data(source, run, stage)
        assert collect_ids(now) == read_recorded_ids(run)
        assert "1 example is not in the run's split and left out: cat/new.png" in join_messages(now)


@pytest.mark.parametrize("settings", [{"seed": 5}, {"num_labels": 10}, {"val_size": 8, "test_size": 2}])
def test_settings_that_would_change_the_split_are_reported_and_ignored(
    source: Path, run: Path, settings: dict[str, Any]
) -> None:
    for stage in ("fit", "test"):
        now = make_data(source, run, stage, **settings)
        assert collect_ids(now) == read_recorded_ids(run)
        for name, value in settings.items():
            assert re.search(rf"{name} {value}(\.0)? \({SETTINGS.get(name, 0)}(\.0)? in the run\)", join_messages(now))


def test_test_file_that_now_holds_a_training_image_is_left_out(source: Path, run: Path) -> None:
    then = read_recorded_ids(run)
    shutil.copy(source / then["labeled"][0], source / then["test"][0])
    write_image(source / then["test"][1], 778)
    now = make_data(source, run)
    assert collect_ids(now)["test"] == then["test"][1:]
    assert (
        f"1 example is left out, as the run was trained on what the file now holds: {then['test'][0]}"
        in join_messages(now)
    )
    assert f"1 example has other content than in the run: {then['test'][1]}" in join_messages(now)


@pytest.mark.parametrize("is_copy", [True, False])
def test_test_file_with_changed_content_is_reported(source: Path, run: Path, is_copy: bool) -> None:
    first, second = read_recorded_ids(run)["test"][:2]
    if is_copy:  # of an image that the run was not trained on
        shutil.copy(source / second, source / first)
    else:
        write_image(source / first, 779)
    now = make_data(source, run)
    assert collect_ids(now) == read_recorded_ids(run)
    assert f"1 example has other content than in the run: {first}" in join_messages(now)
    assert "trained on" not in join_messages(now)


def test_images_of_a_second_source_stay_unlabeled_when_others_are_gone(source: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "second" / f"{i}.png", 600 + i)
    settings: dict[str, Any] = {"unlabeled_source": str(tmp_path / "second")}
    run = write_run(make_data(source, stage="fit", **settings), tmp_path / "run")
    then = read_recorded_ids(run)
    assert then["unlabeled"] == [f"{tmp_path / 'second'}:{i}.png" for i in range(3)]
    (source / then["test"][0]).unlink()
    write_image(tmp_path / "second" / "new.png", 700)
    now = make_data(source, run, "fit", **settings)
    assert collect_ids(now) == {**then, "test": then["test"][1:]}
    assert f"1 example is not in the run's split and left out: {tmp_path / 'second'}:new.png" in join_messages(now)


def test_training_image_that_became_a_test_image_is_left_out_of_training(source: Path, run: Path) -> None:
    then = read_recorded_ids(run)
    shutil.copy(source / then["test"][0], source / then["labeled"][0])
    now = make_data(source, run, "fit")
    assert collect_ids(now) == {**then, "labeled": then["labeled"][1:]}
    assert "1 example has other content than in the run" in join_messages(now)


def test_changed_labels_are_reported(source: Path, tmp_path: Path) -> None:
    rows = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(20)]

    def write(rows: list[tuple[str, str]]) -> Path:
        with (source / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
        return source / "list.csv"

    run = write_run(make_data(write(rows), stage="fit"), tmp_path / "run")
    first, second = read_recorded_ids(run)["test"][:2]
    other = {"cat": "dog", "dog": "cat"}
    now = make_data(write([(p, other[c] if p == first else "" if p == second else c) for p, c in rows]), run)
    assert second not in collect_ids(now)["test"]
    assert f"1 example is left out without the former label: {second}" in join_messages(now)
    label = dict(rows)[first]
    assert f"1 example has another label than in the run: {first} ({label} then, {other[label]} now)" in join_messages(
        now
    )


def test_changed_label_is_reported_for_a_table_with_splits(source: Path, tmp_path: Path) -> None:
    def write(changed: str) -> Path:
        rows = ["path,label,split"]
        for c in ("cat", "dog"):
            for i in range(20):
                label = {"cat": "dog", "dog": "cat"}[c] if f"{c}/{i}.png" == changed else c
                rows.append(f"{c}/{i}.png,{label},{'train' if i < 10 else 'val' if i < 15 else 'test'}")
        (source / "list.csv").write_text("\n".join(rows) + "\n")
        return source / "list.csv"

    def open_source(changed: str, run: Path | None = None) -> ImageDataModule:
        data = ImageDataModule(str(write(changed)), image_size=8, num_workers=0)
        data.followed_run = run
        data.setup("test" if run else "fit")
        return data

    run = write_run(open_source(""), tmp_path / "run")
    assert join_messages(open_source("", run)) == ""
    now = open_source("cat/19.png", run)
    assert collect_ids(now) == read_recorded_ids(run)
    assert "1 example has another label than in the run: cat/19.png (cat then, dog now)" in join_messages(now)


def test_moved_copy_is_recognized_as_the_data_of_the_run(source: Path, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "elsewhere")
    assert collect_ids(make_data(copy, run)) == read_recorded_ids(run)
    (copy / read_recorded_ids(run)["test"][0]).unlink()
    assert collect_ids(make_data(copy, run))["test"] == read_recorded_ids(run)["test"][1:]


def test_other_data_is_evaluated_without_training_images_of_the_run(source: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            write_image(other / name / f"{i}.png", 900 + 10 * c + i)
    shutil.copy(source / read_recorded_ids(run)["labeled"][0], other / "cat" / "known.png")
    for stage, name in (("test", "test"), ("predict", "test"), ("validate", "val")):
        now = make_data(other, run, stage)
        assert collect_ids(now)[name] == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
        assert "all of its labeled examples are evaluated" in join_messages(now)
        assert f"1 of 7 {name} examples are labeled training examples of" in join_messages(now)
        assert "training has no label" not in join_messages(now)  # other data needs no training labels
    with pytest.raises(InputError, match="holds other examples: continue with the same data"):
        make_data(other, run, "fit", num_labels=None)
    for c, name in enumerate(("cat", "dog")):
        write_image(other / "train" / name / "0.png", 950 + c)
        (other / "test").mkdir(exist_ok=True)
        (other / name).rename(other / "test" / name)
    assert len(collect_ids(make_data(other, run))["test"]) == 6


def test_test_images_that_the_starting_run_learned_are_left_out(source: Path, run: Path) -> None:
    def started(**settings: Any) -> ImageDataModule:
        data = ImageDataModule(**{"source": str(source), **SETTINGS, "seed": 1, **settings})
        data.starts = [run / "split.csv"]
        data.setup("fit")
        return data

    seen = set(read_recorded_ids(run)["labeled"])
    plain = make_data(source, stage="fit", seed=1)
    leaked = seen & {*collect_ids(plain)["test"], *collect_ids(plain)["val"]}
    assert leaked
    now = started()
    held_out = {*collect_ids(now)["test"], *collect_ids(now)["val"]}
    assert held_out == {*collect_ids(plain)["test"], *collect_ids(plain)["val"]} - seen
    assert "labeled training examples of" in join_messages(now)
    with pytest.raises(InputError, match=r"labeled training examples of .*split_file=.*or set on_leak: drop"):
        started(on_leak="raise")
    same = started(seed=0)
    assert collect_ids(same) == read_recorded_ids(run)
    assert join_messages(same) == ""
    # What was left out stays so, and is not taken for new.
    second = write_run(now, run.parent / "second")
    assert {row.id for row in read_rows(second / "split.csv") if row.split == LEFT_OUT} == leaked
    again = make_data(source, second, seed=1)
    assert collect_ids(again) == collect_ids(now)
    assert join_messages(again) == ""


def test_split_file_of_an_earlier_version_is_followed(source: Path, run: Path) -> None:
    path = run / "split.csv"
    then = read_recorded_ids(run)
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *(line.rpartition(",")[0] for line in lines)]) + "\n")
    assert join_messages(make_data(source, run)) == ""
    (source / then["test"][0]).unlink()
    write_image(source / "cat" / "new.png", 777)
    assert collect_ids(make_data(source, run)) == {**then, "test": then["test"][1:]}


def test_test_on_all_evaluates_all_labeled_images_of_other_data(source: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for k, folder in enumerate(("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")):
        for i in range(3):
            write_image(other / folder / f"{i}.png", 900 + 10 * k + i)
    shutil.copy(source / read_recorded_ids(run)["labeled"][0], other / "train" / "cat" / "trained.png")
    everything = {str(path.relative_to(other)) for path in other.rglob("*.png")} - {"train/cat/trained.png"}
    for stage, name in (("test", "test"), ("predict", "test"), ("validate", "val")):
        usual = make_data(other, run, stage)
        assert {one.split("/")[0] for one in collect_ids(usual)[name]} == {name}
        assert (
            f"its own {name} split is evaluated (6); set test_on: all to evaluate its other 13 labeled"
            in join_messages(usual)
        )
        now = make_data(other, run, stage, test_on="all")
        assert set(collect_ids(now)[name]) == everything
        assert "all of its labeled examples are evaluated (19)" in join_messages(now)
        assert f"1 of 19 {name} examples are labeled training examples of {run}" in join_messages(now)
        assert now.predict_name == f"all of {other}"
        alone = make_data(other, None, stage, test_on="all")
        assert set(collect_ids(alone)[name]) == {*everything, "train/cat/trained.png"}
        assert "test_on is 'all' for" in join_messages(alone)
        with pytest.raises(InputError, match=r"is the data of the run: .* of its examples were trained on"):
            make_data(source, run, stage, test_on="all")
        with pytest.raises(InputError, match="give one of them"):
            make_data(other, None, stage, test_on="all", split_file=str(run / "split.csv"))
    for followed in (run, None):
        with pytest.raises(InputError, match="leave it at 'split' here"):
            make_data(source, followed, "fit", test_on="all")
