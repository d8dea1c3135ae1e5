"""The parts of a report on a classifier of one class for each example."""

import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning.report import figures
from sft_lightning.report.evaluation import Evaluation
from sft_lightning.report.examples import format_groups, format_split
from sft_lightning.report.metrics import count_confusions, pair_confidence
from sft_lightning.utils.html import render_figure, render_heading, render_matrix, render_table

COLOR_TITLE = "class"  # what the colors of a map stand for
RELIABILITY_SIDES = ("confidence", "accuracy")
_MAX_MATRIX = 30  # classes of a confusion matrix that is still readable
_MAX_LEAD_MATRIX = 12  # classes of one that fits beside the verdict


def format_verdict(evaluation: Evaluation, iterate: str) -> tuple[list[str], list[str]]:
    """Return sentences with the results, and sentences with what limits them.

    Args:
        evaluation: Evaluation of a classifier.
        iterate: State of the training that is shown.
    """
    judged, names, plural = evaluation.judged, evaluation.class_names, evaluation.data.input_spec.plural
    low, high = judged.interval
    is_right = judged.predicted == judged.labels
    recall = {c: float(is_right[judged.labels == c].double().mean()) for c in judged.labels.unique().tolist()}
    worst = min(recall, key=lambda c: recall[c])
    constant = float(judged.labels.bincount().max()) / len(judged.labels)
    results = [
        f"{format_split(judged.name).capitalize()} accuracy: {judged.accuracy:.1%} of {len(judged.ids):,} {plural}"
        f"{format_groups(judged.groups)} (95% interval {low:.1%} to {high:.1%}). Always predicting the most frequent "
        f"class would give {constant:.1%}.",
        f"This is the {iterate}. The recall is lowest for class {names[worst]}: {recall[worst]:.1%}.",
    ]
    return results, format_caveats(judged.name, plural)


def draw_lead_figure(evaluation: Evaluation) -> Markup:
    """Return the confusion matrix, or the recall of each class where there are too many for a matrix.

    Args:
        evaluation: Evaluation of a classifier.
    """
    judged, names = evaluation.judged, evaluation.class_names
    counts = count_confusions(judged, len(names))
    split = format_split(judged.name)
    if len(names) <= _MAX_LEAD_MATRIX:
        title = f"Confusion matrix of the {split} split: true class by row, predicted class by column"
        return render_figure(render_matrix(counts.tolist(), names), title)
    totals = counts.sum(1)
    recall = counts.diag()[totals > 0] / totals[totals > 0]
    return figures.draw_sorted_recall(recall.tolist(), judged.accuracy, f"Recall of each class on the {split} split")


def render_classes(evaluation: Evaluation) -> Markup:
    """Return a table of the classes, and what they are confused with.

    Args:
        evaluation: Evaluation of a classifier.
    """
    judged, names = evaluation.judged, evaluation.class_names
    counts = count_confusions(judged, len(names))
    num_labels = torch.bincount(evaluation.labeled.labels, minlength=len(names)).tolist()
    rows = []
    for c, name in enumerate(names):
        right, true, predicted = (int(n) for n in (counts[c, c], counts[c].sum(), counts[:, c].sum()))
        recall = f"{right / true:.1%}" if true else "-"
        rows.append((name, num_labels[c], true, recall, f"{right / predicted:.1%}" if predicted else "never predicted"))
    table = render_table(("class", "labels", judged.name, "recall", "precision"), rows)
    if len(names) <= _MAX_LEAD_MATRIX:
        return table  # the matrix is beside the verdict
    if len(names) <= _MAX_MATRIX:
        return table + render_matrix(counts.tolist(), names)
    errors = (counts - counts.diag().diag()).flatten()
    pairs = [(int(n), *divmod(int(k), len(names))) for n, k in zip(*errors.topk(_MAX_MATRIX), strict=True) if n]
    confused = [(names[true], names[predicted], n) for n, true, predicted in pairs]
    heading = render_heading("Most frequent confusions")
    return table + heading + render_table(("true", "predicted", evaluation.data.input_spec.plural), confused)


def format_caveats(split: str, plural: str) -> list[str]:
    """Return sentences with what limits the results of any classifier.

    Args:
        split: Name of the split that the page is about.
        plural: Word for several examples.
    """
    caveats = ["The data has no test split: if the validation split chose anything, this result is too optimistic."]
    one_run = f"One run cannot show whether unlabeled {plural} helped: run a study over several seeds."
    return [*caveats[: split == "val"], one_run]


def describe_confidence(logits: Tensor, labels: Tensor) -> str:
    """Return the mean confidence beside the accuracy, as the start of a sentence.

    Args:
        logits: Logits of the classes, (N, C).
        labels: True classes, int64, (N,).
    """
    confidence, is_right = pair_confidence(logits, labels)
    mean, accuracy = float(confidence.mean()), float(is_right.double().mean())
    direction = "overconfident" if mean > accuracy else "underconfident"
    return f"It is {direction}: its mean confidence is {mean:.1%}"


def color_examples(evaluation: Evaluation, labels: Tensor) -> tuple[Tensor, list[str]]:
    """Return the number of the color of each example on a map, int64, (N,), and the names of the colors.

    Args:
        evaluation: Evaluation of a classifier.
        labels: Classes, int64, (N,).
    """
    return labels, evaluation.class_names
