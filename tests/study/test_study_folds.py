"""A study of a folder of 40 small images without a test split, which is judged by folds of its labels."""

import csv
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image

from sft_lightning.__main__ import main
from sft_lightning.study import runner
from sft_lightning.study.judge import compare, estimate_accuracy
from tests.conftest import CONFIGS
from tests.study.test_study import Recorder

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
RUNS = 2 * 2  # methods by folds


def write_study(folder: Path, **changed: Any) -> str:
    init_args = {"source": "images", "batch_size": 8, "steps_per_epoch": 4, "num_workers": 0}
    study = {
        "name": "mine",
        "budgets": [30],
        "seeds": [0],
        "folds": 2,
        "data": {"class_path": "ImageDataModule", "init_args": init_args},
        "options": {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"},
        "methods": {
            "labels_only": [{"config": [FINE_TUNE]}],
            "slow": [{"config": [FINE_TUNE], "options": {"model.init_args.optimizer.init_args.lr": 1e-9}}],
        },
        **changed,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return f"--config={path}"


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """Return the folder of a study that was stopped after its second training and continued, and what continued."""
    folder = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(0)
    for brightness, name in ((100, "dark"), (150, "light")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.normal(brightness, 40, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as err:
        patch.chdir(folder)
        patch.setattr(runner, "perform", Recorder(stop_after=2))
        assert main(["study", write_study(folder)]) != 0
        continued = Recorder()
        patch.setattr(runner, "perform", continued)
        assert main(["study", write_study(folder)]) == 0
    return folder, [run.title for run in continued.runs], err.getvalue()


def read_split(path: Path) -> dict[str, set[str]]:
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    return {name: {row["id"] for row in rows if row["split"] == name} for name in ("labeled", "unlabeled", "test")}


def test_each_method_is_trained_without_each_fold_and_tested_on_it(studied: tuple[Path, list[str], str]) -> None:
    folder, continued, err = studied
    assert "4 runs, 4 to train" in err
    assert continued == ["labels_only, tune, 30 labels, seed 0, fold 1", "slow, tune, 30 labels, seed 0, fold 1"]
    with (folder / "lightning_logs/study/mine/results.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["run"]]
    assert len(runs) == RUNS
    for method in ("labels_only", "slow"):
        splits = [read_split(folder / row["run"] / "split.csv") for row in runs if row["method"] == method]
        assert not splits[0]["test"] & splits[1]["test"]
        assert splits[0]["test"] == splits[1]["labeled"]
        assert splits[1]["test"] == splits[0]["labeled"]
        assert len(splits[0]["test"] | splits[1]["test"]) == 30
        assert all(len(split["unlabeled"]) == 10 for split in splits)
        assert not any(split["unlabeled"] & (split["labeled"] | split["test"]) for split in splits)


def test_methods_are_compared_on_all_held_out_labels(studied: tuple[Path, list[str], str]) -> None:
    folder = studied[0] / "lightning_logs" / "study" / "mine"
    ledger = json.loads((folder / "study.json").read_text())
    assert len(ledger) == RUNS
    correct: dict[str, dict[str, int]] = {"labels_only": {}, "slow": {}}
    fold: dict[str, int] = {}
    for result in ledger.values():
        assert np.mean(list(result["correct"].values())) == pytest.approx(result["test_last"], abs=1e-6)
        correct[result["title"].split(",")[0]] |= result["correct"]
        fold |= dict.fromkeys(result["correct"], int(result["title"][-1]))
    ids = sorted(fold)
    ours, theirs, folds = (
        np.array([[of[name] for name in ids]]) for of in (correct["slow"], correct["labels_only"], fold)
    )
    expected = compare(ours, theirs, folds)
    summary = json.loads((folder / "summary.json").read_text())
    (made,) = summary["comparisons"]
    assert (made["mean_difference"], made["low"], made["p_value"], made["labels"]) == pytest.approx(
        (expected.difference, expected.low, expected.p_value, 30)
    )
    assert made["verdict"] == expected.verdict
    (accuracy,) = (one for one in summary["estimates"] if one["method"] == "slow")
    estimate = estimate_accuracy(ours, folds)
    assert (accuracy["mean"], accuracy["low"], accuracy["high"]) == pytest.approx(
        (estimate.mean, estimate.low, estimate.high)
    )
    assert "30 held-out labels, 1 seed" in summary["details"][0]
    page = (folder / "report.html").read_text()
    assert f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" in page
    assert "logistic regression on pixels" in page


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"folds": 9, "budgets": [8]}, "folds is 9, but of 8 labels with seed 0 class 'dark' has 4: set folds to 4"),
        ({"folds": 1}, "folds is 1"),
        ({"judge": "best"}, "judge is 'best', which a validation split chooses, and folds leave none"),
        ({"options": {"data.init_args.split_file": "mine.csv"}}, "folds makes splits, and split_file 'mine.csv'"),
        (
            {"data": {"class_path": "ImageDataModule", "init_args": {"source": "sample"}}},
            "has a test split of 2,000 examples, which judges methods better: leave folds out",
        ),
    ],
)
def test_wrong_folds_are_one_sentence(
    studied: tuple[Path, list[str], str],
    changed: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(studied[0])
    assert main(["study", write_study(tmp_path, name="wrong", **changed)]) != 0
    assert sentence in capsys.readouterr().err
