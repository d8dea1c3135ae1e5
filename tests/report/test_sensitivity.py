"""Sensitivity at a stated specificity, with thresholds from other examples than those that are counted."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sft_lightning.__main__ import main
from sft_lightning.report.evaluation import Predictions
from sft_lightning.report.examples import format_groups
from sft_lightning.report.sensitivity import measure_sensitivity
from sft_lightning.tasks.classification import Classification
from sft_lightning.tasks.classification_metrics import wilson


def predict(logits: Tensor, labels: Tensor) -> Predictions:
    ids = [str(i) for i in range(len(labels))]
    return Predictions("test", ids, logits, logits, labels, Classification(logits.shape[1]))


def draw(count: int, seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return predict(torch.nn.functional.one_hot(labels, 3) + torch.randn(count, 3, generator=generator), labels)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 0.999])
def test_the_threshold_keeps_the_specificity_where_it_was_chosen(wanted: float) -> None:
    validation, test = draw(400, 0), draw(300, 1)
    for k, (own, other) in enumerate(
        zip(measure_sensitivity(validation, validation, wanted), measure_sensitivity(test, validation, wanted),
            strict=True)
    ):  # fmt: skip
        assert own is not None
        assert other is not None
        assert own.threshold == other.threshold
        assert wanted <= own.specificity[0] < wanted + 1 / own.negatives + 1e-9
        scores, labels = test.logits.softmax(1)[:, k], test.labels == k
        assert other.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        share = float(np.mean(scores[labels].numpy() >= other.threshold))
        assert other.sensitivity == pytest.approx((share, *wilson(share, int(labels.sum()))))
        assert other.specificity[0] == pytest.approx(np.mean(scores[~labels].numpy() < other.threshold))
        assert (other.positives, other.negatives) == (int(labels.sum()), int((~labels).sum()))


def test_ties_count_against_the_threshold() -> None:
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 0], [0, 9]])
    judged = predict(logits, torch.tensor([0, 0, 0, 0, 1, 1]))
    first, second = measure_sensitivity(judged, judged, 0.5)
    assert second is not None
    assert second.specificity[0] == 1  # four equal values lie below together
    assert second.sensitivity[0] == 1
    assert first is not None
    assert first.threshold == pytest.approx(0, abs=1e-3)


def test_slices_of_a_patient_are_worth_fewer_examples() -> None:
    judged = draw(120, 0)
    alone = measure_sensitivity(judged, judged, 0.9)[0]
    copies = predict(judged.logits.repeat(4, 1), judged.labels.repeat(4))
    copies.groups = [f"patient {i % 120}" for i in range(480)]  # four equal slices of each
    grouped = measure_sensitivity(copies, copies, 0.9)[0]
    copies.groups = [str(i) for i in range(480)]
    assert alone is not None
    assert grouped is not None
    assert grouped.sensitivity == pytest.approx(alone.sensitivity, abs=0.02)  # Student's t reaches a little further
    assert grouped.specificity == pytest.approx(alone.specificity, abs=0.02)
    low, high = wilson(copies.accuracy, 480)
    assert copies.interval == (low, high)
    copies.groups = [f"patient {i % 120}" for i in range(480)]
    assert copies.interval == pytest.approx(wilson(judged.accuracy, 120), abs=0.01)
    copies.groups = ["anna"] * 480
    assert copies.interval[0] < 0.01
    assert copies.interval[1] > 0.99
    assert format_groups(copies.groups) == " of 1 group"
    assert format_groups(None) == format_groups(["a", "b"]) == ""


def test_a_class_without_examples_has_no_figures() -> None:
    validation, test = draw(90, 0), draw(60, 1)
    test.labels[test.labels == 1] = 0
    first, missing, last = measure_sensitivity(test, validation, 0.9)
    assert missing is None
    assert first is not None
    assert last is not None
    assert math.isfinite(first.auroc)


def test_the_page_of_a_run_shows_it(workdir: Path, cli_error: Callable[..., str]) -> None:
    words = ["--model=FrozenFeatureClassifier", "--data=ImageDataModule", "--data.source=sample"]
    words += ["--data.num_labels=60", "--run_name=mine"]
    assert main(["fit", *words, "--data.val_size=300"]) == 0
    run = "lightning_logs/mine/version_0"
    assert main(["report", run, "--specificity=0.9", "--label_next=0"]) == 0
    page = Path(run, "report.html").read_text()
    assert "Sensitivity at a specificity of 90%" in page
    assert "chosen on the validation split and counted on the test split" in page
    table = page[page.index("AUROC") :]
    found = re.search(r"Ankle boot</td><td>([\d.]+)</td><td>[\d.]+</td><td>([\d.]+)%", table)
    assert found is not None
    assert float(found[1]) > 0.8
    assert float(found[2]) > 40
    kept = re.findall(r"\d%\)</td><td>([\d.]+)% \(", table)
    assert len(kept) == 10
    assert min(map(float, kept)) < 90  # thresholds of the test itself would keep it for each class
    assert "specificity is 1.5: give a share above 0 and below 1" in cli_error("report", run, "--specificity=1.5")
