import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.data.split_files import LEFT_OUT, read_rows
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.utils.errors import InputError
from tests.data.conftest import picture
from tests.data.run_helpers import SETTINGS, ids, made, recorded, said, write_run


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_unchanged_data_is_divided_as_the_run_did_without_a_word(source: Path, run: Path, stage: str) -> None:
    again = made(source, run, stage)
    assert ids(again) == recorded(run)
    assert said(again) == ""


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_what_a_new_run_says_of_its_split_is_said_again(source: Path, tmp_path: Path, stage: str) -> None:
    for i in range(20):
        shutil.copy(source / "cat" / f"{i}.png", source / "cat" / f"copy_{i}.png")
    first = made(source, stage="fit")
    assert "cat/copy_" in said(first)
    again = made(source, write_run(first, tmp_path / "run"), stage)
    assert ids(again) == ids(first)
    assert said(again) == said(first)


def test_removed_images_are_named_and_no_others_take_their_place(source: Path, run: Path) -> None:
    then = recorded(run)
    for name in then["test"][:2] + then["labeled"][:1]:
        (source / name).unlink()
    now = made(source, run)
    assert ids(now) == {**then, "test": then["test"][2:], "labeled": then["labeled"][1:]}
    assert f"3 images are gone or unreadable (1 labeled, 2 test): {then['labeled'][0]}, {then['test'][0]}" in said(now)


def test_a_run_all_of_whose_test_images_were_removed_is_not_tested(source: Path, run: Path) -> None:
    for name in recorded(run)["test"]:
        (source / name).unlink()
    with pytest.raises(InputError, match="no longer has any of the 6 test images of the run"):
        made(source, run)


def test_new_images_are_named_and_in_no_split(source: Path, run: Path) -> None:
    picture(source / "cat" / "new.png", 777)
    for stage in ("fit", "test"):
        now = made(source, run, stage)
        assert ids(now) == recorded(run)
        assert "1 image is not in the run's split and left out: cat/new.png" in said(now)


@pytest.mark.parametrize("settings", [{"seed": 5}, {"num_labels": 10}, {"val_size": 8, "test_size": 2}])
def test_settings_that_would_choose_another_split_are_named_and_do_not(
    source: Path, run: Path, settings: dict[str, Any]
) -> None:
    for stage in ("fit", "test"):
        now = made(source, run, stage, **settings)
        assert ids(now) == recorded(run)
        for name, value in settings.items():
            assert re.search(rf"{name} {value}(\.0)? \({SETTINGS.get(name, 0)}(\.0)? in the run\)", said(now))


def test_a_test_file_that_now_holds_a_training_image_is_left_out(source: Path, run: Path) -> None:
    then = recorded(run)
    shutil.copy(source / then["labeled"][0], source / then["test"][0])
    picture(source / then["test"][1], 778)
    now = made(source, run)
    assert ids(now)["test"] == then["test"][1:]
    assert f"1 image is left out, as the run was trained on what the file now holds: {then['test'][0]}" in said(now)
    assert f"1 image has other content than in the run: {then['test'][1]}" in said(now)


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_test_file_with_other_content_is_named(source: Path, run: Path, is_copy: bool) -> None:
    first, second = recorded(run)["test"][:2]
    if is_copy:  # of an image that the run was not trained on
        shutil.copy(source / second, source / first)
    else:
        picture(source / first, 779)
    now = made(source, run)
    assert ids(now) == recorded(run)
    assert f"1 image has other content than in the run: {first}" in said(now)
    assert "trained on" not in said(now)


def test_images_of_a_second_source_stay_where_others_are_gone(source: Path, tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "second" / f"{i}.png", 600 + i)
    settings: dict[str, Any] = {"unlabeled_source": str(tmp_path / "second")}
    run = write_run(made(source, stage="fit", **settings), tmp_path / "run")
    then = recorded(run)
    assert then["unlabeled"] == [f"{tmp_path / 'second'}:{i}.png" for i in range(3)]
    (source / then["test"][0]).unlink()
    picture(tmp_path / "second" / "new.png", 700)
    now = made(source, run, "fit", **settings)
    assert ids(now) == {**then, "test": then["test"][1:]}
    assert f"1 image is not in the run's split and left out: {tmp_path / 'second'}:new.png" in said(now)


def test_a_training_image_that_now_is_a_test_image_is_not_trained_on(source: Path, run: Path) -> None:
    then = recorded(run)
    shutil.copy(source / then["test"][0], source / then["labeled"][0])
    now = made(source, run, "fit")
    assert ids(now) == {**then, "labeled": then["labeled"][1:]}
    assert "1 image has other content than in the run" in said(now)


def test_labels_that_changed_are_named(source: Path, tmp_path: Path) -> None:
    rows = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(20)]

    def write(rows: list[tuple[str, str]]) -> Path:
        with (source / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
        return source / "list.csv"

    run = write_run(made(write(rows), stage="fit"), tmp_path / "run")
    first, second = recorded(run)["test"][:2]
    other = {"cat": "dog", "dog": "cat"}
    now = made(write([(p, other[c] if p == first else "" if p == second else c) for p, c in rows]), run)
    assert second not in ids(now)["test"]
    assert f"1 image is left out without the former label: {second}" in said(now)
    label = dict(rows)[first]
    assert f"1 image has another label than in the run: {first} ({label} then, {other[label]} now)" in said(now)


def test_a_label_that_changed_is_named_where_a_table_states_the_split(source: Path, tmp_path: Path) -> None:
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
    assert said(open_source("", run)) == ""
    now = open_source("cat/19.png", run)
    assert ids(now) == recorded(run)
    assert "1 image has another label than in the run: cat/19.png (cat then, dog now)" in said(now)


def test_a_copy_at_another_place_is_the_data_of_the_run(source: Path, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "elsewhere")
    assert ids(made(copy, run)) == recorded(run)
    (copy / recorded(run)["test"][0]).unlink()
    assert ids(made(copy, run))["test"] == recorded(run)["test"][1:]


def test_other_data_is_measured_without_what_the_run_was_trained_on(source: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            picture(other / name / f"{i}.png", 900 + 10 * c + i)
    shutil.copy(source / recorded(run)["labeled"][0], other / "cat" / "known.png")
    for stage, name in (("test", "test"), ("predict", "test"), ("validate", "val")):
        now = made(other, run, stage)
        assert ids(now)[name] == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
        assert "all of its labeled images are evaluated" in said(now)
        assert f"1 of 7 {name} images are labeled training images of" in said(now)
        assert "training has no label" not in said(now)  # other data needs no training labels
    with pytest.raises(InputError, match="holds other images: continue with the same data"):
        made(other, run, "fit", num_labels=None)
    for c, name in enumerate(("cat", "dog")):
        picture(other / "train" / name / "0.png", 950 + c)
        (other / "test").mkdir(exist_ok=True)
        (other / name).rename(other / "test" / name)
    assert len(ids(made(other, run))["test"]) == 6


def test_a_start_that_has_seen_test_labels(source: Path, run: Path) -> None:
    def started(**settings: Any) -> ImageDataModule:
        data = ImageDataModule(**{"source": str(source), **SETTINGS, "seed": 1, **settings})
        data.starts = [run / "split.csv"]
        data.setup("fit")
        return data

    seen = set(recorded(run)["labeled"])
    plain = made(source, stage="fit", seed=1)
    leaked = seen & {*ids(plain)["test"], *ids(plain)["val"]}
    assert leaked
    now = started()
    held_out = {*ids(now)["test"], *ids(now)["val"]}
    assert held_out == {*ids(plain)["test"], *ids(plain)["val"]} - seen
    assert "labeled training images of" in said(now)
    with pytest.raises(InputError, match=r"labeled training images of .*split_file=.*or set on_leak: drop"):
        started(on_leak="raise")
    same = started(seed=0)
    assert ids(same) == recorded(run)
    assert said(same) == ""
    # What was left out stays so, and is not taken for new.
    second = write_run(now, run.parent / "second")
    assert {row.id for row in read_rows(second / "split.csv") if row.split == LEFT_OUT} == leaked
    again = made(source, second, seed=1)
    assert ids(again) == ids(now)
    assert said(again) == ""


def test_a_split_of_an_earlier_version_rules_too(source: Path, run: Path) -> None:
    path = run / "split.csv"
    then = recorded(run)
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *(line.rpartition(",")[0] for line in lines)]) + "\n")
    assert said(made(source, run)) == ""
    (source / then["test"][0]).unlink()
    picture(source / "cat" / "new.png", 777)
    assert ids(made(source, run)) == {**then, "test": then["test"][1:]}


def test_all_of_other_data_is_measured_where_it_is_asked_for(source: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for k, folder in enumerate(("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")):
        for i in range(3):
            picture(other / folder / f"{i}.png", 900 + 10 * k + i)
    shutil.copy(source / recorded(run)["labeled"][0], other / "train" / "cat" / "trained.png")
    everything = {str(path.relative_to(other)) for path in other.rglob("*.png")} - {"train/cat/trained.png"}
    for stage, name in (("test", "test"), ("predict", "test"), ("validate", "val")):
        usual = made(other, run, stage)
        assert {one.split("/")[0] for one in ids(usual)[name]} == {name}
        assert f"its own {name} split is evaluated (6); set test_on: all to evaluate its other 13 labeled" in said(
            usual
        )
        now = made(other, run, stage, test_on="all")
        assert set(ids(now)[name]) == everything
        assert "all of its labeled images are evaluated (19)" in said(now)
        assert f"1 of 19 {name} images are labeled training images of {run}" in said(now)
        assert now.predict_name == f"all of {other}"
        alone = made(other, None, stage, test_on="all")
        assert set(ids(alone)[name]) == {*everything, "train/cat/trained.png"}
        assert "test_on is 'all' for" in said(alone)
        with pytest.raises(InputError, match=r"is the data of the run: .* of its images were trained on"):
            made(source, run, stage, test_on="all")
        with pytest.raises(InputError, match="give one of them"):
            made(other, None, stage, test_on="all", split_file=str(run / "split.csv"))
    for followed in (run, None):
        with pytest.raises(InputError, match="leave it at 'split' here"):
            made(source, followed, "fit", test_on="all")
