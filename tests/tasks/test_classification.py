"""The loss of classification, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from sft_lightning.tasks.classification import Classification
from sft_lightning.utils.errors import InputError

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
TARGET = torch.tensor([0, 2, 2])
WEIGHT = torch.tensor([1.0, 5.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_loss_is_the_weighted_mean_of_smoothed_cross_entropies(smoothing: float, weight: torch.Tensor | None) -> None:
    total, mass = 0.0, 0.0
    for logits, label in zip(LOGITS.tolist(), TARGET.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in logits))
        target = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        loss = sum(p * (log_sum - value) for p, value in zip(target, logits, strict=True))
        each = 1.0 if weight is None else float(weight[label])
        total, mass = total + each * loss, mass + each
    assert float(Classification(3, smoothing).loss(LOGITS, TARGET, weight)) == pytest.approx(total / mass)


def test_head_and_metrics_have_the_number_of_classes() -> None:
    task = Classification(3)
    head = task.build_head(5)
    assert (head.in_features, head.out_features) == (5, 3)
    metrics = task.build_metrics()
    metrics.update(LOGITS, TARGET)
    values = metrics.compute()
    assert float(values["accuracy"]) == pytest.approx(2 / 3)
    assert float(values["loss"]) == pytest.approx(float(F.cross_entropy(LOGITS, TARGET)))


@pytest.mark.parametrize(
    ("settings", "name"), [((1,), "num_classes"), ((3, 1.0), "label_smoothing"), ((3, -0.1), "label")]
)
def test_settings_out_of_range_are_refused(settings: tuple[float, ...], name: str) -> None:
    with pytest.raises(InputError, match=name):
        Classification(*settings)  # type: ignore[arg-type]
