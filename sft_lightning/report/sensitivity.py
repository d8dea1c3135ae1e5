"""How many examples of each class are found at a stated specificity, as medicine asks it."""

import math
from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from sft_lightning.report.evaluation import Predictions
from sft_lightning.tasks.classification_metrics import wilson


class Sensitivity(NamedTuple):
    """How well one class is told from all others.

    Attributes:
        auroc: Area under the receiver operating characteristic, 0 to 1.
        threshold: Probability from which an example is called of the class.
        sensitivity: Share of the examples of the class that are, with its 95 % interval (Wilson 1927).
        specificity: Share of the others that are not, with its interval.
        positives: Number of examples of the class.
        negatives: Number of others.
    """

    auroc: float
    threshold: float
    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]
    positives: int
    negatives: int


def measure_sensitivity(judged: Predictions, chosen_on: Predictions, wanted: float) -> list[Sensitivity | None]:
    """Choose a threshold for each class on one split, and count what it does on another.

    Args:
        judged: Predictions that are counted, with labels.
        chosen_on: Predictions by which thresholds are chosen, with labels: those of validation, since a threshold that
            was chosen on the examples that it is judged on looks better than it is.
        wanted: Specificity that the threshold has at least on `chosen_on`, above 0 and below 1.

    Returns:
        One entry for each class; None for a class of which a split has no example, or nothing else.
    """
    p, q = (one.outputs.softmax(1) for one in (judged, chosen_on))
    found: list[Sensitivity | None] = []
    for k in range(p.shape[1]):
        is_class, others = judged.labels == k, q[chosen_on.labels != k, k]
        positives, negatives = int(is_class.sum()), int((~is_class).sum())
        if not positives or not negatives or not len(others):
            found.append(None)
            continue
        threshold = _choose_threshold(others, wanted)
        called = p[:, k] >= threshold
        hit, spared = float(called[is_class].double().mean()), float((~called[~is_class]).double().mean())
        found.append(
            Sensitivity(
                float(binary_auroc(p[:, k], is_class.long())), threshold, (hit, *wilson(hit, positives)),
                (spared, *wilson(spared, negatives)), positives, negatives,
            )
        )  # fmt: skip
    return found


def _choose_threshold(others: Tensor, wanted: float) -> float:
    """Return the smallest threshold that at least a share of the probabilities of other examples lie below."""
    last = others.sort().values[math.ceil(wanted * len(others) - 1e-9) - 1]
    return float(last.nextafter(last.new_tensor(math.inf)))
