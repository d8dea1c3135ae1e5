"""`rank` and `degree` on examples that have several classes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_lightning.__main__ import main
from sft_lightning.data.set_folds import make_set_folds
from sft_lightning.tasks.multi_label_metrics import compute_example_f1
from sft_lightning.transfer.scores import cross_validate, h_score, logme, regularized_h_score, split_into_folds
from sft_lightning.tuning import degree
from tests.tasks.helpers import write_images

DATA = ["--data=ImageDataModule", "--data.source=images/images.csv", "--data.label_separator=;"]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def draw(count: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    y = (torch.rand(count, 3, generator=made) < torch.tensor([0.5, 0.3, 0.2])).long()
    x = y.float() @ torch.randn(3, 5, generator=made) + 0.3 * torch.randn(count, 5, generator=made)
    return x, y


def test_scores_of_sets_are_means_over_classes() -> None:
    x, y = draw()
    for score in (h_score, regularized_h_score):
        assert score(x, y) == pytest.approx(np.mean([score(x, own) for own in y.T]))
        assert score(x, torch.cat([y, torch.zeros_like(y[:, :1])], 1)) == pytest.approx(score(x, y))
        assert score(x, y) > 2 * score(torch.randn(90, 5, generator=torch.Generator().manual_seed(1)), y)
    hot = torch.nn.functional.one_hot(y[:, 0])
    assert logme(x, hot, 2) == pytest.approx(logme(x, y[:, 0], 2))
    assert logme(x, y, 3) > logme(x[:, :1], y, 3)


def test_cross_validation_of_sets_is_the_f1_of_examples_that_were_held_out() -> None:
    x, y = draw()
    fold = make_set_folds(y.numpy(), None, 5, 3)[0]
    splits = split_into_folds(y, 5, 3)
    assert [sorted(test) for _, test in splits] == [np.flatnonzero(fold == k).tolist() for k in range(5)]
    mean, error = cross_validate(x, y, 5, 3, kind="linear")
    assert 0.8 < mean < 1
    assert 0 < error < 0.1
    assert 0.75 < cross_validate(x, y, 5, 3, kind="knn")[0] < 1
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))
    everything = float(compute_example_f1(torch.ones_like(y), y).mean())
    for kind in ("linear", "knn"):
        assert cross_validate(noise, y, 5, 3, kind=kind)[0] < everything + 0.1
    groups = [str(i // 3) for i in range(90)]
    for train, test in split_into_folds(y, 5, 3, groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_starts_are_ranked_by_sets_of_classes(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("images"), 80)
    named = "--candidates=[{backbone: conv, weights: none}, {backbone: mlp, weights: none}]"
    words = ["rank", *DATA, "--data.image_size=16", "--folds=3", named, "--out=found"]
    assert main([*words, "--by=leep"]) == 2
    assert "by is 'leep', which takes examples of one class each, and these have several" in capsys.readouterr().err
    assert main([*words, "--by=linear"]) == 0
    shown = capsys.readouterr().out
    assert "linear probe and k-NN: F1 of an example ± s.e." in shown
    assert "LEEP and NCE are left out, since they take examples of one class each" in shown
    rows = read_rows(Path("found/rank.csv"))
    assert len(rows) == 2
    for row in rows:
        assert not row["failed"]
        assert 0.3 < float(row["linear"]) <= 1
        assert float(row["logme"]) == float(row["logme"])
        assert row["leep"] == ""
    assert float(rows[0]["linear"]) >= float(rows[1]["linear"])


def test_degrees_are_compared_by_the_mean_average_precision(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("images"), 60)
    words = ["degree", *DATA, "--data.image_size=16", "--data.batch_size=16", "--data.val_size=0"]
    words += ["--model=FineTuneClassifier", "--model.backbone=conv", "--model.optimizer=Adam", "--run_name=d"]
    words += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--degree.folds=2"]
    words += ["--degree.depth=[head,all]", "--degree.backbone_lr_scale=[1.0]"]
    assert main(words) == 0
    rows = read_rows(Path("lightning_logs/d_degree/degree.csv"))
    assert [row["depth"] for row in rows] == ["head", "all"]
    for row in rows:
        folds = [float(row[f"fold_{k}"]) for k in range(2)]
        assert all(0 < value <= 1 for value in folds)
        assert float(row["mean_average_precision"]) == pytest.approx(np.mean(folds), abs=1e-4)
    stored = json.loads(Path("lightning_logs/d_degree/degree.json").read_text())
    assert sorted(f"{one['mean_average_precision']:.4f}" for one in stored.values()) == sorted(
        row[f"fold_{k}"] for row in rows for k in range(2)
    )
    run = Path("lightning_logs/d_degree/depth_head/fold_0/version_0")
    with (run / "metrics.csv").open(newline="") as file:
        logged = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "val/mean_average_precision"]
    assert f"{logged[-1]:.4f}" == rows[0]["fold_0"]
    monkeypatch.setattr(degree, "_measure", None)  # nothing is trained again
    assert main(words) == 0
