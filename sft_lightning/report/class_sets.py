"""The parts of a report on a classifier of examples that have several classes."""

import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning.report import figures
from sft_lightning.report.evaluation import Evaluation
from sft_lightning.report.examples import format_groups, format_split
from sft_lightning.report.metrics import pair_confidence
from sft_lightning.report.one_class import format_caveats
from sft_lightning.tasks.multi_label_metrics import MultiLabelMetrics, compute_f1
from sft_lightning.utils.html import render_note, render_table

COLOR_TITLE = "the rarest of their classes"  # what the colors of a map stand for
RELIABILITY_SIDES = ("probability of a class", "share of examples that have it")


def _measure(evaluation: Evaluation) -> tuple[dict[str, float], list[float]]:
    """Return the metrics of the judged split, and the average precision of each class; NaN without an example."""
    metrics = MultiLabelMetrics(len(evaluation.class_names))
    metrics.update(evaluation.judged.logits, evaluation.judged.labels)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert metrics.by_class is not None
    return values, metrics.by_class.tolist()


def format_verdict(evaluation: Evaluation, iterate: str) -> tuple[list[str], list[str]]:
    """Return sentences with the results, and sentences with what limits them.

    Args:
        evaluation: Evaluation of a classifier.
        iterate: State of the training that is shown.
    """
    judged, names, plural = evaluation.judged, evaluation.class_names, evaluation.data.input_spec.plural
    values, _ = _measure(evaluation)
    targets, predicted = judged.labels, judged.predicted
    f1 = compute_f1(predicted, targets)
    micro = float(compute_f1(predicted.view(-1, 1), targets.view(-1, 1)))
    chance = targets.double().mean(0)
    present = (targets.sum(0) > 0).nonzero()[:, 0].tolist()
    low, high = judged.interval
    results = [
        f"{format_split(judged.name).capitalize()} mean average precision: {values['mean_average_precision']:.3f} on "
        f"{len(judged.ids):,} {plural}{format_groups(judged.groups)}. Chance would give "
        f"{float(chance[chance > 0].mean()):.3f}."
        if present
        else f"No {format_split(judged.name)} example has any class, and the average precision needs one.",
        f"F1 is {micro:.3f} over all pairs of an example and a class, and {float(f1.mean()):.3f} as the mean over "
        f"classes. All classes are right for {judged.accuracy:.1%} of the {plural} (95% interval {low:.1%} to "
        f"{high:.1%}).",
        f"This is the {iterate}.",
    ]
    if present:
        worst = min(present, key=lambda k: float(f1[k]))
        results[2] += f" F1 is lowest for class {names[worst]}: {float(f1[worst]):.3f}."
    return results, format_caveats(judged.name, plural)


def draw_lead_figure(evaluation: Evaluation) -> Markup:
    """Return the F1 of each class that has examples, from the lowest to the highest.

    Args:
        evaluation: Evaluation of a classifier.
    """
    judged = evaluation.judged
    f1 = compute_f1(judged.predicted, judged.labels)[judged.labels.sum(0) > 0]
    title = f"F1 of each class on the {format_split(judged.name)} split"
    mean = float(f1.mean()) if len(f1) else 0.0
    return figures.draw_sorted_recall(f1.tolist(), mean, title, ("F1", "mean")) if len(f1) > 1 else Markup()


def render_classes(evaluation: Evaluation) -> Markup:
    """Return a table of the classes with their thresholds, and how many classes the examples have.

    Args:
        evaluation: Evaluation of a classifier.
    """
    judged, names = evaluation.judged, evaluation.class_names
    targets, predicted = judged.labels, judged.predicted
    labeled, true, found = (x.sum(0).tolist() for x in (evaluation.labeled.labels, targets, predicted))
    both, f1 = (predicted * targets).sum(0).tolist(), compute_f1(predicted, targets).tolist()
    limits = judged.thresholds.tolist() or [0.5] * len(names)
    rows = [
        (
            name,
            labeled[k],
            true[k],
            f"{limits[k]:.3f}",
            f"{both[k] / found[k]:.1%}" if found[k] else "never predicted",
            f"{both[k] / true[k]:.1%}" if true[k] else "-",
            f"{f1[k]:.3f}" if true[k] or found[k] else "-",
            f"{precision:.3f}" if true[k] else "-",
        )
        for k, (name, precision) in enumerate(zip(names, _measure(evaluation)[1], strict=True))
    ]
    head = ("class", "labels", judged.name, "threshold", "precision", "recall", "F1", "average precision")
    counts = [int(x.sum(1).eq(0).sum()) for x in (targets, predicted)]
    chosen = "have the best F1 on the validation split" if len(judged.thresholds) else "are 0.5"
    if len(judged.thresholds) and evaluation.validation is None:
        chosen = "have the best F1 of an example on labels that were held out in turn"
    note = (
        f"On average, {_describe_split(evaluation)} have {targets.double().sum(1).mean():.2f} classes and are "
        f"predicted {predicted.double().sum(1).mean():.2f}; {counts[0]:,} have none, and for {counts[1]:,} none is "
        "predicted. "
        f"Thresholds {chosen}."
    )
    return render_note(note) + render_table(head, rows)


def _describe_split(evaluation: Evaluation) -> str:
    return f"{format_split(evaluation.judged.name)} {evaluation.data.input_spec.plural}"


def describe_confidence(logits: Tensor, labels: Tensor) -> str:
    """Return the mean probability beside the share of classes that examples have, as the start of a sentence.

    Args:
        logits: Logits of the classes, (N, C).
        labels: 1 for each class of an example and 0 for the others, int64, (N, C).
    """
    p, is_true = pair_confidence(logits, labels)
    return (
        f"Before calibration, its mean probability of a class is {float(p.mean()):.1%}, and examples have "
        f"{float(is_true.double().mean()):.1%} of the classes"
    )


def color_examples(evaluation: Evaluation, labels: Tensor) -> tuple[Tensor, list[str]]:
    """Return the number of the color of each example on a map, int64, (N,), and the names of the colors.

    Args:
        evaluation: Evaluation of a classifier.
        labels: 1 for each class of an example and 0 for the others, int64, (N, C).
    """
    order = evaluation.labeled.labels.sum(0).argsort(stable=True)
    ranked = labels[:, order] > 0
    colors = torch.where(ranked.any(1), order[ranked.int().argmax(1)], len(evaluation.class_names))
    return colors, [*evaluation.class_names, "no class"]
