"""How many examples of each class are found at a stated specificity, as medicine asks it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from sft_lightning.report.evaluation import Evaluation, Predictions
from sft_lightning.report.examples import format_split
from sft_lightning.tasks.intervals import estimate_interval, has_groups
from sft_lightning.utils.html import render_note, render_table

_MOST = 30  # classes of a table that is still read


class Sensitivity(NamedTuple):
    """How well one class is separated from all others.

    Attributes:
        auroc: Area under the receiver operating characteristic, 0 to 1.
        threshold: Probability from which an example is called of the class.
        sensitivity: Share of the examples of the class that are, with its 95 % interval, as `estimate_interval` has it.
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
        called, auroc = p[:, k] >= threshold, float(binary_auroc(p[:, k], is_class.long()))
        hit, spared = _measure_share(called, is_class, judged.groups), _measure_share(~called, ~is_class, judged.groups)
        found.append(Sensitivity(auroc, threshold, hit, spared, positives, negatives))
    return found


def _measure_share(is_right: Tensor, counted: Tensor, groups: Sequence[str] | None) -> tuple[float, float, float]:
    """Return the share of the counted examples that are right, with its interval."""
    own = None if groups is None else [groups[i] for i in counted.nonzero()[:, 0].tolist()]
    return float(is_right[counted].double().mean()), *estimate_interval(is_right[counted], own)


def _choose_threshold(others: Tensor, wanted: float) -> float:
    """Return the smallest threshold that at least a share of the probabilities of other examples lie below."""
    last = others.sort().values[math.ceil(wanted * len(others) - 1e-9) - 1]
    return float(last.nextafter(last.new_tensor(math.inf)))


def render_sensitivity(evaluation: Evaluation, wanted: float) -> Markup:
    """Return a table with the sensitivity of each class at a stated specificity, or nothing for more than 30 classes.

    Args:
        evaluation: Evaluation of a classifier of one class for each example.
        wanted: Specificity, above 0 and below 1.
    """
    names, judged, validation = evaluation.class_names, evaluation.judged, evaluation.validation
    if len(names) > _MOST:
        return Markup()
    rows: list[tuple[str, ...]] = []
    for name, one in zip(names, measure_sensitivity(judged, validation or judged, wanted), strict=True):
        if one is None:
            rows.append((name, "-", "-", "-", "-"))
            continue
        shares = (f"{mean:.1%} ({low:.1%} to {high:.1%})" for mean, low, high in (one.sensitivity, one.specificity))
        rows.append((name, f"{one.auroc:.3f}", f"{one.threshold:.3f}", *shares))
    split = format_split(judged.name)
    where = f"chosen on the validation split and counted on the {split} split"
    if validation is None:
        where = f"chosen and counted on the {split} split, which makes them look better than they are"
    note = (
        f"Each class against all others. Thresholds of the probability are {where}, so that the specificity is at "
        f"least {wanted:.0%} where they were chosen; set another with --specificity. In brackets: 95% intervals"
        f"{', which allow for examples of a group that are right or wrong together' * has_groups(judged.groups)}."
    )
    head = ("class", "AUROC", "threshold", "sensitivity", "specificity")
    return render_note(note) + render_table(head, rows)
