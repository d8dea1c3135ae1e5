"""Folders of a study's runs are named for people, and never shared by runs with other inputs."""

import json
from pathlib import Path

import pytest

from sft_lightning.study.folders import RECORD, assign_folders
from sft_lightning.study.method_names import is_baseline, name_baseline, name_methods
from sft_lightning.study.plan import NUM_LABELS, Stage, StudyRun

KEY = "0123456789abcdef" * 4


def make_run(key: str = KEY, method: str = "freematch", is_final: bool = True, stage: Stage | None = None) -> StudyRun:
    return StudyRun(method, stage or Stage([]), 100, 0, key, (), None, is_final)


@pytest.mark.parametrize(
    ("run", "folder"),
    [
        (make_run(), "100_labels/freematch/seed_0"),
        (make_run(method="../my method"), "100_labels/_my_method/seed_0"),
        (make_run(is_final=False, stage=Stage([], name="pretrain")), "100_labels/freematch_pretrain/seed_0"),
        (make_run(stage=Stage([], {NUM_LABELS: 0})), "0_labels/freematch/seed_0"),
        (make_run(stage=Stage([], {NUM_LABELS: None})), "all_labels/freematch/seed_0"),
    ],
)
def test_folders_are_named_by_labels_method_and_seed(tmp_path: Path, run: StudyRun, folder: str) -> None:
    (assigned,) = assign_folders([run], tmp_path)
    assert assigned == run._replace(folder=folder)
    assert json.loads((tmp_path / folder / RECORD).read_text()) == {"key": KEY, "title": run.title}


def test_runs_with_other_inputs_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = [make_run("a" * 64), make_run("b" * 64), make_run("c" * 64)]
    folders = [run.folder for run in assign_folders(runs, tmp_path)]
    assert folders == [f"100_labels/freematch/seed_0{end}" for end in ("", "_2", "_3")]
    assert [run.folder for run in assign_folders(runs[::-1], tmp_path)] == folders[::-1]


def test_a_run_keeps_its_folder_when_its_method_is_renamed(tmp_path: Path) -> None:
    (before,) = assign_folders([make_run()], tmp_path)
    (after,) = assign_folders([make_run(method="ours")], tmp_path)
    assert after.folder == before.folder


def test_folders_with_the_key_in_their_name_are_found(tmp_path: Path) -> None:
    """Version 0.1 named them so."""
    legacy = tmp_path / f"freematch_tune_100_labels_seed_0_{KEY[:8]}"
    (legacy / "version_0").mkdir(parents=True)
    runs = assign_folders([make_run(), make_run("f" * 64)], tmp_path)
    assert [run.folder for run in runs] == [legacy.name, "100_labels/freematch/seed_0"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}'])
def test_a_folder_with_a_damaged_record_is_left_alone(tmp_path: Path, content: str) -> None:
    (first,) = assign_folders([make_run()], tmp_path)
    (tmp_path / first.folder / RECORD).write_text(content)
    (second,) = assign_folders([make_run()], tmp_path)
    assert second.folder == "100_labels/freematch/seed_0_2"


def test_methods_have_names_for_readers() -> None:
    methods = ["labels_only", "freematch", "uda", "mean_teacher", name_baseline(None), name_baseline("freematch")]
    methods += [name_baseline(None, "texts", "graph"), name_baseline("mean_teacher", kind="graph")]
    assert [is_baseline(method) for method in methods] == 4 * [False] + 4 * [True]
    assert [*name_methods(methods).values()] == [
        "labels only",
        "FreeMatch",
        "UDA",
        "mean teacher",
        "logistic regression on pixels",
        "logistic regression on the initial features of FreeMatch",
        "label spreading on texts",
        "label spreading on the initial features of mean teacher",
    ]
    ambiguous = ["freematch", "FreeMatch", "a_b", "a b"]
    assert name_methods(ambiguous) == {method: method for method in ambiguous}
