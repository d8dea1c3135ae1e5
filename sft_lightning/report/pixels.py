"""The page of a network of pixels: overlays with the worst images first, classes, confusions and calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.report import figures, one_class
from sft_lightning.report.calibration import render_calibration
from sft_lightning.report.examples import format_groups, format_split
from sft_lightning.report.metrics import choose_to_label
from sft_lightning.report.pixel_evaluation import PixelEvaluation, PixelPredictions
from sft_lightning.report.run_sections import render_health, render_training
from sft_lightning.tasks.intervals import has_groups
from sft_lightning.tasks.segmentation_metrics import average_iou, bootstrap_mean_iou
from sft_lightning.training.callbacks.metrics_csv import read_curves
from sft_lightning.training.callbacks.vision.mask_predictions import lay_over
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.html import (
    Section,
    render_examples,
    render_figure,
    render_heading,
    render_note,
    render_table,
    render_tiles,
)
from sft_lightning.utils.spreadsheet import format_csv

_NUM_WORST, _NUM_TYPICAL, _MAX_CONFUSIONS = 8, 4, 15
_SIDE = 192  # pixels of a panel
_UNKNOWN, _WRONG = (128, 128, 128), (220, 30, 30)  # colors of pixels that are not counted, and of wrong ones


def describe_run(
    opened: LoadedRun, iterate: str, path: Path, label_next: int
) -> tuple[list[str], Markup, list[Section]]:
    """Return the sentences of the verdict, the figure beside them, and the sections.

    Args:
        opened: Run of a network of pixels.
        iterate: State of the training that is shown.
        path: Path of the CSV file with the images to label next.
        label_next: Number of unlabeled images to propose for labeling; 0 for none.
    """
    evaluation, curves = PixelEvaluation(opened), read_curves(opened.folder)
    confidence, calibration = render_calibration(evaluation.judged, evaluation.validation, None, one_class)
    note = (
        f"Of {len(evaluation.judged.labels):,} pixels, as many of each image. Predicted probabilities are those of "
        "the network, at temperature 1."
    )
    sections = [
        Section("Results by class", render_classes(evaluation)),
        Section("Most frequent confusions", render_confusions(evaluation)),
        Section("Worst images", render_worst(evaluation)),
        Section("Calibration of pixels", render_note(note) + calibration),
        Section("Training curves", render_training(curves)),
        Section("Health of the pseudo-labels", render_health(curves)),
        Section("What to label next", render_label_next(evaluation, path, label_next)),
    ]
    judged = evaluation.judged
    ious = _divide_by_class(judged)[0]
    title = f"Intersection over union of each class on the {format_split(judged.name)} split"
    mean = float(average_iou(judged.totals))
    figure = figures.draw_sorted_recall(ious[~ious.isnan()].tolist(), mean, title, ("IoU", "mean"))
    caveats = one_class.format_caveats(judged.name, evaluation.data.input_spec.plural)
    said = f"In pixels, {confidence[:1].lower()}{confidence[1:]}"
    return [*format_verdict(evaluation, iterate), said, *caveats], figure, sections


def _divide_by_class(judged: PixelPredictions) -> Tensor:
    """Return intersection over union, Dice, precision and recall of each class, (4, C); NaN without a pixel."""
    right, true, predicted = judged.totals.double()
    return torch.stack([right / d for d in (true + predicted - right, (true + predicted) / 2, predicted, true)])


def format_verdict(evaluation: PixelEvaluation, iterate: str) -> list[str]:
    """Return sentences with the results.

    Args:
        evaluation: Evaluation of a network of pixels.
        iterate: State of the training that is shown.
    """
    judged, names = evaluation.judged, evaluation.class_names
    ious, dice = _divide_by_class(judged)[:2]
    right, true, _ = judged.totals
    low, high = bootstrap_mean_iou(judged.counts, groups=judged.groups)
    drawn = "groups of images" if has_groups(judged.groups) else "images"
    common = int(true.argmax())
    constant = float(true[common] / true.sum()) / int((true > 0).sum())
    worst = int(ious.nan_to_num(2.0).argmin())
    return [
        f"{format_split(judged.name).capitalize()} mean IoU: {float(ious.nanmean()):.3f} on {len(judged.ids):,} masks"
        f"{format_groups(judged.groups)} (95% interval {low:.3f} to {high:.3f}, by drawing {drawn} again). Calling "
        f"every pixel {names[common]} would give {constant:.3f}.",
        f"Mean Dice is {float(dice.nanmean()):.3f}, the F1 of boundaries {judged.boundary_f1:.3f}, and "
        f"{float(right.sum() / true.sum()):.1%} of the pixels are right. "
        f"Averaged over images, the mean IoU of each is {float(judged.image_ious.mean()):.3f}.",
        f"This is the {iterate}. The IoU is lowest for class {names[worst]}: {float(ious[worst]):.3f}.",
    ]


def render_classes(evaluation: PixelEvaluation) -> Markup:
    """Return a table of the classes.

    Args:
        evaluation: Evaluation of a network of pixels.
    """
    judged, measures = evaluation.judged, _divide_by_class(evaluation.judged)
    learned, tested = ((one.counts[:, 1] > 0).sum(0).tolist() for one in (evaluation.labeled, judged))
    true = judged.totals[1]
    rows = [
        (
            name,
            learned[k],
            tested[k],
            f"{int(true[k]):,}",
            f"{float(true[k] / true.sum()):.1%}",
            *(f"{value:.3f}" if value == value else "-" for value in measures[:, k].tolist()),
        )
        for k, name in enumerate(evaluation.class_names)
    ]
    split = format_split(judged.name)
    head = ("class", "training masks", f"{split} masks", f"{split} pixels", "share", "IoU", "Dice", "precision")
    size = evaluation.data.geometry.size
    note = f"Pixels are those of {size} x {size}, at which the network sees the images."
    return render_note(note) + render_table((*head, "recall"), rows)


def render_confusions(evaluation: PixelEvaluation) -> Markup:
    """Return the pairs of classes of which most pixels are confused.

    Args:
        evaluation: Evaluation of a network of pixels.
    """
    counts, names = evaluation.judged.confusion, evaluation.class_names
    wrong = (counts - counts.diag().diag()).flatten()
    top = wrong.topk(min(_MAX_CONFUSIONS, len(wrong)))
    pairs = [(n, *divmod(k, len(names))) for n, k in zip(top.values.tolist(), top.indices.tolist(), strict=True) if n]
    if not pairs:
        return render_note("Every pixel is right.")
    rows = [(names[i], names[j], f"{n:,}", f"{n / int(counts[i].sum()):.1%}") for n, i, j in pairs]
    return render_table(("true", "predicted", "pixels", "of the true class"), rows)


def render_worst(evaluation: PixelEvaluation) -> Markup:
    """Return the images of the lowest intersection over union, and some at the median, with their masks.

    Args:
        evaluation: Evaluation of a network of pixels.
    """
    judged = evaluation.judged
    order = judged.image_ious.argsort(stable=True).tolist()
    middle = max(0, len(order) // 2 - _NUM_TYPICAL // 2)
    typical = [i for i in order[middle : middle + _NUM_TYPICAL] if i not in order[:_NUM_WORST]]
    palette = evaluation.data.palette
    legend = [
        (name, "#{:02x}{:02x}{:02x}".format(*color), "square")
        for name, color in zip(evaluation.class_names, palette, strict=True)
    ]
    note = "Image, true mask, predicted mask, and wrong pixels in red; gray pixels are not counted."
    rendered = render_note(note) + render_figure(Markup(), "", legend)
    rendered += render_tiles(_make_tiles(evaluation, order[:_NUM_WORST]))
    if typical:
        rendered += render_heading("At the median") + render_tiles(_make_tiles(evaluation, typical))
    return rendered


def _make_tiles(evaluation: PixelEvaluation, positions: Sequence[int]) -> list[tuple[Markup, list[str]]]:
    judged, names, ious = evaluation.judged, evaluation.class_names, evaluation.judged.image_ious
    tiles = []
    for i in positions:
        x, target = evaluation.data.read_pair(judged.name, i)
        decided = evaluation.compute_logits(x[None])[0].argmax(0)
        said = evaluation.task.describe_mistake(torch.empty(0), decided, target, names)
        lines = [f"IoU {float(ious[i]):.3f}", said, judged.ids[i]]
        tiles.append((render_examples(_draw_panels(evaluation, x, target, decided, judged.ids[i]), "panels"), lines))
    return tiles


def _draw_panels(
    evaluation: PixelEvaluation, x: Tensor, target: Tensor, decided: Tensor, identifier: str
) -> list[Markup]:
    """Return the image, its true and its predicted mask over it, and where they differ."""
    colors = [*evaluation.data.palette, _UNKNOWN]  # the last one is that of pixel -1
    wrong = (target >= 0) & (target != decided)
    gray = x.mean(0, keepdim=True).expand(3, -1, -1)
    marked = torch.where(wrong, torch.tensor(_WRONG)[:, None, None] / 255, 0.5 + gray / 2)
    panels = [(x, identifier), (cover(x, target, colors), "true mask"), (cover(x, decided, colors), "predicted mask")]
    return [figures.embed_image(shown, text, _SIDE) for shown, text in [*panels, (marked, "wrong pixels")]]


def cover(x: Tensor, mask: Tensor, colors: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return an image under the colors of a mask, (3, H, W) in [0, 1].

    Args:
        x: Image in [0, 1], (C, H, W).
        mask: Classes of its pixels, (H, W); -1 stands for the last color.
        colors: Color of each class.
    """
    pixels = (x.expand(3, -1, -1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    covered = lay_over(pixels, mask.to(torch.int16).numpy(), colors)
    return torch.from_numpy(np.asarray(covered).copy()).permute(2, 0, 1) / 255


def render_label_next(evaluation: PixelEvaluation, path: Path, count: int) -> Markup:
    """Return the unlabeled images to draw masks of next, under the predicted ones, and write them to a CSV file.

    Args:
        evaluation: Evaluation of a network of pixels.
        path: Path of the CSV file.
        count: Number of images to choose.
    """
    unlabeled = evaluation.predict_unlabeled() if count else None
    if unlabeled is None:
        return Markup()
    positions = choose_to_label(unlabeled.uncertainty, unlabeled.features, evaluation.labeled.features, count)
    rows = [(order, unlabeled.ids[i], f"{float(unlabeled.uncertainty[i]):.4f}") for order, i in enumerate(positions, 1)]
    write_text(path, format_csv([("order", "id", "uncertainty"), *rows]))
    tiles = []
    for i, (order, identifier, value) in zip(positions, rows, strict=True):
        x = evaluation.data.inputs_of(unlabeled.name, [i])
        assert isinstance(x, Tensor)
        covered = cover(x[0], evaluation.compute_logits(x)[0].argmax(0), evaluation.data.palette)
        pair = [figures.embed_image(x[0], identifier), figures.embed_image(covered, "predicted mask")]
        tiles.append((render_examples(pair, "pair"), [f"{order}.", f"uncertainty {value}", identifier]))
    note = (
        f"Chosen from {len(unlabeled.ids):,} images without a mask: uncertain, and unlike images with masks and each "
        f"other. Uncertainty is {evaluation.task.uncertainty_note}. Also in {path.name}."
    )
    return render_note(note) + render_tiles(tiles)
