"""Studies of detectors, compared by the mean average precision of the test split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from sft_lightning.__main__ import main
from tests.boxes import write_boxes_folder
from tests.conftest import CONFIGS
from tests.detection.test_detection_commands import read_metrics
from tests.study.test_study_sets import read_study

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}


def write_study(**changed: Any) -> list[str]:
    """Write a study of a method and of one that hardly learns, and return its words."""
    init = {"source": "d", "image_size": 64, "batch_size": 8, "num_workers": 0, "val_size": 0, "steps_per_epoch": 10}
    network = {"backbone": "resnet8", "detector": "ssdlite", "optimizer": ADAM}
    Path("tune.yaml").write_text(yaml.safe_dump({"model": {"class_path": "FineTuneDetector", "init_args": network}}))
    slow = {"model.init_args.optimizer.init_args.lr": 1e-9}
    study = {
        "name": "mine", "budgets": [12], "seeds": [0],
        "data": {"class_path": "DetectionDataModule", "init_args": init},
        "options": {"trainer.max_epochs": 2, "trainer.accelerator": "cpu"},
        "methods": {
            "labels_only": [{"config": ["tune.yaml"]}], "slow": [{"config": ["tune.yaml"], "options": slow}],
        },
        **changed,
    }  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return ["study", "--config=study.yaml"]


@pytest.mark.slow
def test_detectors_are_compared_by_their_average_precision(workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 14, "test": 4})
    assert main(write_study()) == 0
    rows, summary, page = read_study()
    assert summary["metric"] == "mean average precision"
    run = next(row for row in rows if row["method"] == "labels_only")
    assert main(["test", f"{run['run']}/checkpoints/last.ckpt"]) == 0
    assert float(run["test_last"]) == pytest.approx(read_metrics(Path(run["run"]))["test/map"][-1], abs=1e-5)
    means = [np.mean([float(r["test_last"]) for r in rows if r["method"] == m]) for m in ("slow", "labels_only")]
    assert means[1] > means[0] + 0.05
    assert "Examples have boxes: all figures are the mean average precision." in " ".join(summary["notes"])
    assert "test mean average precision" in page


def test_folds_are_refused(workdir: Path, cli_error: Callable[..., str]) -> None:
    write_boxes_folder(Path("d"), {"train": 14})
    assert "average precision of boxes is not a mean over examples" in cli_error(*write_study(folds=2))


@pytest.mark.slow
def test_the_shipped_study_runs(workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 14, "test": 2}, unlabeled=2)
    study = yaml.safe_load((CONFIGS / "study" / "detection.yaml").read_text())
    study["data"]["init_args"] |= {"source": "d", "image_size": 64, "steps_per_epoch": 2, "batch_size": 2}
    study |= {"name": "mine", "budgets": [8], "seeds": [0]}
    small = {"backbone": "resnet8", "weights": "none", "detector": "ssdlite"}
    study["options"] = {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"}
    study["options"] |= {f"model.init_args.{name}": value for name, value in small.items()}
    for (stage,) in study["methods"].values():
        stage["config"] = [str((CONFIGS / "study" / name).resolve()) for name in stage["config"]]
    Path("study.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "--config=study.yaml"]) == 0
    rows, summary, _ = read_study()
    assert not summary["failed"]
    assert {row["method"] for row in rows} == {"labels_only", "unbiased_teacher"}
