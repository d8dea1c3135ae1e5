"""Studies of images with masks, on a test split and judged by folds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image

from sft_lightning.__main__ import main
from sft_lightning.study.inputs import InputReader
from sft_lightning.study.judge import estimate_accuracy
from tests.conftest import CONFIGS
from tests.scenes import write_scenes
from tests.study.test_study_sets import read_study
from tests.tasks.test_segmentation import FIT, read_rows

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}


def write_study(**changed: Any) -> list[str]:
    """Write a study of a method and of one that hardly learns, and return its words."""
    init = {"source": "d", "image_size": 32, "batch_size": 4, "num_workers": 0, "val_size": 0, "test_size": 8}
    model = {"class_path": "FineTuneClassifier", "init_args": {"backbone": "resnet8", "optimizer": ADAM}}
    Path("tune.yaml").write_text(yaml.safe_dump({"model": model}))
    slow = {"model.init_args.optimizer.init_args.lr": 1e-9}
    study = {
        "name": "mine", "budgets": [12], "seeds": [0, 1],
        "data": {"class_path": "SegmentationDataModule", "init_args": init},
        "options": {"trainer.max_epochs": 4, "trainer.accelerator": "cpu"},
        "methods": {
            "labels_only": [{"config": ["tune.yaml"]}], "slow": [{"config": ["tune.yaml"], "options": slow}],
        },
        **changed,
    }  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return ["study", "--config=study.yaml"]


@pytest.mark.slow
def test_methods_are_compared_by_the_mean_iou(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(Path("d"), 30)
    assert main(write_study()) == 0
    assert "test mean IoU 0." in capsys.readouterr().err
    rows, summary, page = read_study()
    assert summary["metric"] == "mean IoU"
    simple = {"most common class on pixels", "logistic regression on pixels"}
    assert {row["method"] for row in rows} == {"labels_only", "slow", *simple}
    run = next(row for row in rows if row["method"] == "labels_only")
    assert main(["test", f"{run['run']}/checkpoints/last.ckpt"]) == 0
    tested = {row["metric"]: float(row["value"]) for row in read_rows(Path(run["run"], "metrics.csv"))}
    assert float(run["test_last"]) == pytest.approx(tested["test/mean_iou"], abs=1e-5)
    (comparison,) = summary["comparisons"]
    means = [np.mean([float(r["test_last"]) for r in rows if r["method"] == m]) for m in ("slow", "labels_only")]
    assert comparison["mean_difference"] == pytest.approx(means[0] - means[1])
    assert means[1] > means[0] + 0.1
    note = "Examples have masks: all figures are the mean IoU. Label spreading, smoothed regression and naive Bayes are"
    assert note in " ".join(summary["notes"])
    assert "test mean IoU" in page
    assert main(["study", "--config=study.yaml"]) == 0
    assert "4 runs, 0 to train" in capsys.readouterr().err


def test_other_masks_and_other_meanings_of_their_values_are_other_data(workdir: Path) -> None:
    write_scenes(Path("d"), 4)
    words = ["--model=FineTuneClassifier", *FIT]

    def read() -> str:
        digest: str = InputReader().read(words, [])["data"]["source"]["images"]
        return digest

    first = read()
    assert read() == first
    Path("d/classes.txt").write_text("background\nsquare\ndisc\n")
    named = read()
    with Image.open("d/masks/s000.png") as mask:
        Image.fromarray(2 - np.asarray(mask)).save("d/masks/s000.png")
    assert len({first, named, read()}) == 3


@pytest.mark.slow
def test_folds_hold_out_masks_of_each_class(workdir: Path) -> None:
    write_scenes(Path("d"), 16)
    for k in (0, 1):  # the only ones of a fourth class
        with Image.open(f"d/masks/s{k:03}.png") as mask:
            Image.fromarray(np.where(np.arange(32) < 4, 3, np.asarray(mask)).astype(np.uint8)).save(mask.filename)
    assert main(write_study(folds=2, seeds=[0], budgets=[16])) == 0
    rows, summary, _ = read_study()
    assert summary["metric"] == "mean IoU of an image"
    found = json.loads(Path("lightning_logs/study/mine/study.json").read_text()).values()
    runs = {result["folder"]: result for result in found}
    own = [runs[row["run"]]["correct"] for row in rows if row["method"] == "labels_only"]
    assert not own[0].keys() & own[1].keys()
    assert len(own[0]) + len(own[1]) == 16
    assert all(len({"images/s000.png", "images/s001.png"} & part.keys()) == 1 for part in own)
    for row, correct in zip([r for r in rows if r["method"] == "labels_only"], own, strict=True):
        assert float(row["test_last"]) == pytest.approx(np.mean([*correct.values()]), abs=1e-5)
    scores = {**own[0], **own[1]}
    fold = np.array([[int(name in own[1]) for name in scores]])
    expected = estimate_accuracy(np.array([[*scores.values()]]), fold)
    (estimate,) = [one for one in summary["estimates"] if one["method"] == "labels_only"]
    assert (estimate["mean"], estimate["low"]) == pytest.approx((expected.mean, expected.low))


@pytest.mark.slow
def test_the_shipped_study_runs(workdir: Path) -> None:
    write_scenes(Path("d"), 30)
    study = yaml.safe_load((CONFIGS / "study" / "segmentation.yaml").read_text())
    study["data"]["init_args"] |= {"source": "d", "image_size": 32, "steps_per_epoch": 1, "batch_size": 2}
    study |= {"name": "mine", "budgets": [8], "seeds": [0]}
    small = {"model.init_args.backbone": "resnet8", "model.init_args.weights": "none", "trainer.accelerator": "cpu"}
    study["options"] = {"trainer.max_epochs": 1, **small}
    for (stage,) in study["methods"].values():
        stage["config"] = [str((CONFIGS / "study" / name).resolve()) for name in stage["config"]]
    Path("study.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "--config=study.yaml"]) == 0
    rows, summary, _ = read_study()
    assert not summary["failed"]
    assert {"labels_only", "fixmatch", "mean_teacher"} < {row["method"] for row in rows}
