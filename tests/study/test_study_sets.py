"""Studies of examples with several classes, on texts with a test split and on images that are judged by folds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.set_folds import make_set_folds
from sft_lightning.networks.build import build_encoder
from sft_lightning.study.baselines import fit_label_spreading, fit_logistic_regression, fit_naive_bayes
from sft_lightning.study.judge import estimate_accuracy
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.utils.errors import InputError
from tests.tasks.helpers import CLASSES, write_images, write_texts

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.02}}


def write_study(folder: Path, data: dict[str, Any], backbone: str, **changed: Any) -> list[str]:
    """Write a config of a method and a study of it and a slower one."""
    model = {"class_path": "FineTuneClassifier", "init_args": {"backbone": backbone, "optimizer": ADAM}}
    options = {"trainer.max_epochs": 4, "trainer.accelerator": "cpu", "model.init_args.cache_features": False}
    (folder / "tune.yaml").write_text(yaml.safe_dump({"model": model}))
    study: dict[str, Any] = {
        "name": "mine", "budgets": [60], "seeds": [0, 1], "data": data, "options": options,
        "methods": {
            "labels_only": [{"config": ["tune.yaml"]}],
            "slow": [{"config": ["tune.yaml"], "options": {"model.init_args.optimizer.init_args.lr": 1e-9}}],
        },
        **changed,
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return ["study", "--config=study.yaml"]


def read_study() -> tuple[list[dict[str, str]], dict[str, Any], str]:
    folder = Path("lightning_logs/study/mine")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "summary.json").read_text()), (folder / "report.html").read_text()


@pytest.mark.slow
def test_methods_are_compared_by_the_mean_average_precision(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(Path("texts.csv"), 240)
    data = {"source": "texts.csv", "label_separator": ";", "tokenizer": "words:2048", "batch_size": 16}
    assert main(write_study(Path(), {"class_path": "TextDataModule", "init_args": data}, "fasttext")) == 0
    shown = capsys.readouterr()
    assert "test mean average precision 0." in shown.err
    rows, summary, page = read_study()
    assert summary["metric"] == "mean average precision"
    assert len([row for row in rows if row["method"] == "logistic regression on words"]) == 2
    assert {row["method"] for row in rows} == {"labels_only", "slow", "logistic regression on words"}
    run = next(row for row in rows if row["method"] == "labels_only")
    assert main(["test", f"{run['run']}/checkpoints/last.ckpt"]) == 0
    with Path(run["run"], "metrics.csv").open(newline="") as file:
        tested = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert float(run["test_last"]) == pytest.approx(tested["test/mean_average_precision"], abs=1e-5)
    (comparison,) = summary["comparisons"]
    means = [np.mean([float(r["test_last"]) for r in rows if r["method"] == m]) for m in ("slow", "labels_only")]
    assert comparison["mean_difference"] == pytest.approx(means[0] - means[1])
    assert means[1] > means[0] + 0.1
    note = "all figures are the mean average precision. Label spreading, smoothed regression and naive Bayes are left"
    assert note in " ".join(summary["notes"])
    assert "test mean average precision" in page
    assert main(["study", "--config=study.yaml"]) == 0
    assert "4 runs, 0 to train" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_are_judged_by_the_f1_of_each_example(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("images"), 80)
    data = {"source": "images/images.csv", "label_separator": ";", "image_size": 16, "batch_size": 8, "num_workers": 0}
    words = write_study(Path(), {"class_path": "ImageDataModule", "init_args": data}, "mlp", folds=2, seeds=[0])
    assert main(words) == 0
    rows, summary, _ = read_study()
    assert summary["metric"] == "F1 of an example"
    found = json.loads(Path("lightning_logs/study/mine/study.json").read_text()).values()
    runs = {result["folder"]: result for result in found}
    own = [runs[row["run"]]["correct"] for row in rows if row["method"] == "labels_only"]
    assert not own[0].keys() & own[1].keys()
    for row, correct in zip([r for r in rows if r["method"] == "labels_only"], own, strict=True):
        assert float(row["test_last"]) == pytest.approx(np.mean([*correct.values()]), abs=1e-5)
    scores = {**own[0], **own[1]}
    with Path("images/images.csv").open(newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert len(scores) == 60
    assert all(labels[name] for name in scores)
    (estimate,) = [one for one in summary["estimates"] if one["method"] == "labels_only"]
    fold = np.array([[int(name in own[1]) for name in scores]])
    expected = estimate_accuracy(np.array([[*scores.values()]]), fold)
    assert (estimate["mean"], estimate["low"]) == pytest.approx((expected.mean, expected.low))
    split = Path(rows[0]["run"], "split.csv").read_text()
    assert ",val," not in split
    assert capsys.readouterr().out.count("F1 of an example") >= 1


def test_the_f1_of_an_example_by_hand() -> None:
    target = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    logits = torch.tensor([[1.0, -1, -1], [-1, -1, -1], [1, -1, -1], [-1, 1, 1]])
    assert MultiLabel(3).example_scores(logits, target).tolist() == pytest.approx([2 / 3, 1, 0, 0])


def test_the_baseline_is_a_classifier_of_each_class(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 200)
    data = TextDataModule(str(tmp_path / "texts.csv"), label_separator=";")
    data.setup("fit")
    labeled, test = data.splits["labeled"], data.splits["test"]
    y, truth = data.make_targets(labeled.labels).numpy(), data.make_targets(test.labels).numpy()
    texts = {
        name: ["\n".join(split.part.storage.texts[i]) for i in split.indices]  # type: ignore[attr-defined]
        for name, split in data.splits.items()
    }
    found = fit_logistic_regression(data)
    plain = TfidfVectorizer(sublinear_tf=True).fit(texts["labeled"] + texts["unlabeled"])
    x, x_test = plain.transform(texts["labeled"]), plain.transform(texts["test"])
    models = [LogisticRegression(C=10, max_iter=1000).fit(x, y[:, k]) for k in range(3)]
    scores = np.stack([model.decision_function(x_test) for model in models], 1)
    assert found == pytest.approx(average_precision_score(truth, scores), abs=0.03)
    assert found > 0.9
    by_example = f1_score(truth[truth.any(1)], scores[truth.any(1)] > 0, average="samples", zero_division=0)
    assert fit_logistic_regression(data, by_example=True) == pytest.approx(by_example, abs=0.15)
    for fit in (fit_naive_bayes, fit_label_spreading):
        with pytest.raises(InputError, match="takes examples of one class each"):
            fit(data)


def test_the_baseline_takes_pixels_and_features_and_classes_that_no_label_has(workdir: Path) -> None:
    write_images(Path("images"), 120)
    data = ImageDataModule("images/images.csv", label_separator=";", class_names=[*CLASSES, "none"], image_size=16)
    data.setup("fit")
    on_pixels = fit_logistic_regression(data)
    on_features = fit_logistic_regression(data, build_encoder("conv", data.input_spec)[0])
    y = data.make_targets(data.splits["test"].labels)[:, :3].double().mean()
    assert y < on_pixels <= 1
    assert y < on_features <= 1


def test_each_class_is_in_each_fold_and_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.int64)
    targets[7, 3] = 1  # of a single example
    (fold,) = make_set_folds(targets, folds=5, seed=3)
    assert fold[7] == -1
    assert sorted(np.unique(fold)) == [-1, 0, 1, 2, 3, 4]
    for k in range(5):
        assert abs((fold == k).sum() - 199 / 5) <= 1
        assert np.abs(targets[fold == k].mean(0) - targets[fold >= 0].mean(0)).max() < 0.06
    assert not np.array_equal(fold, make_set_folds(targets, folds=5, seed=4)[0])
    groups = [f"g{i % 40}" for i in range(200)]
    (fold,) = make_set_folds(targets, groups, 4)
    assert all(len({*fold[[i for i in range(200) if groups[i] == one]]}) == 1 for one in {*groups})
    assert fold[7] == -1
    assert np.bincount(fold + 1).min() >= 5
    with pytest.raises(InputError, match=r"folds is 5, and 3 of 3 labeled examples can be judged"):
        make_set_folds(np.ones((3, 2), dtype=np.int64), folds=5)
