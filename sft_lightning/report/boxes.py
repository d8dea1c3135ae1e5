"""The page of a detector: average precision by class, a threshold, and the worst images with true and found boxes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.data.vision.boxes import find_annotated
from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import bootstrap_map, collect_matches
from sft_lightning.detection.matching import Matches, choose_threshold, count_matches, match_objects
from sft_lightning.detection.metrics import AP, DetectionMetrics
from sft_lightning.networks.weights import read_weights
from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
from sft_lightning.report import figures
from sft_lightning.report.examples import format_split
from sft_lightning.report.run_sections import render_training
from sft_lightning.tasks.intervals import has_groups
from sft_lightning.training.callbacks.metrics_csv import read_curves
from sft_lightning.training.callbacks.vision.box_predictions import draw_boxes, draw_found, to_pixels
from sft_lightning.utils.html import Section, render_examples, render_note, render_table, render_tiles

_NUM_WORST = 12
_SIDE = 256  # pixels of a panel


class Judged(NamedTuple):
    """Detections of a split.

    Attributes:
        name: Name of the split.
        positions: Positions of the images with annotations in the split.
        found: Detections of each, without padding.
        targets: Objects of each, (M, 6), as in `sft_lightning.data.vision.boxes`.
        matches: Matches of each.
        metrics: Average precision, by name.
        groups: Group of each image, or None.
    """

    name: str
    positions: list[int]
    found: list[Detections]
    targets: list[Tensor]
    matches: list[Matches]
    metrics: dict[str, float]
    groups: list[str] | None = None


def describe_run(opened: LoadedRun, iterate: str) -> tuple[list[str], Markup, list[Section]]:
    """Return the sentences of the verdict, the figure beside them, and the sections.

    Args:
        opened: Run of a detector.
        iterate: State of the training that is shown.

    Raises:
        InputError: The run has no held-out image, or the extra `detection` is not installed.
    """
    model = opened.cli.model
    assert isinstance(model, FineTuneDetector)
    model.load_state_dict(read_weights(opened.checkpoint)[0])
    model.eval()
    judged = judge(opened, model, opened.held_out)
    has_validation = judged.name != "val" and len(opened.data.splits["val"]) > 0
    chosen = judge(opened, model, "val") if has_validation else judged
    threshold = choose_threshold(chosen.matches)
    names = opened.data.class_names
    curves = read_curves(opened.folder)
    sections = [
        Section("Results by class", render_classes(opened, judged, threshold)),
        Section("Threshold", render_threshold(judged, chosen, threshold)),
        Section("Worst images", render_worst(opened, judged, threshold)),
        Section("Training curves", render_training(curves)),
    ]
    by_class = [judged.metrics.get(f"{AP}{k}", float("nan")) for k in range(len(names))]
    title = f"Average precision of each class on the {format_split(judged.name)} split"
    shown = [value for value in by_class if value == value]
    figure = figures.draw_sorted_recall(shown, judged.metrics["map"], title, ("AP", "mean"))
    return format_verdict(judged, by_class, names, iterate), figure, sections


@torch.no_grad()
def judge(opened: LoadedRun, model: FineTuneDetector, name: str) -> Judged:
    """Find the objects of a split and compare them with its annotations.

    Args:
        opened: Run of the detector.
        model: Its network with the weights of the checkpoint, in evaluation mode.
        name: Name of the split.
    """
    metrics = DetectionMetrics()
    positions, every, targets = [], [], []
    for batch in opened.data.batches_of(name, torch.device("cpu")):
        found, is_known = model(batch.x), find_annotated(batch.y).tolist()
        metrics.update(found, batch.y, batch.indices)
        for k, position in enumerate(batch.indices.tolist()):
            if not is_known[k]:
                continue
            kept = found.classes[k] >= 0
            positions.append(position)
            every.append(Detections(*(part[k][kept] for part in found)))
            targets.append(batch.y[k][batch.y[k, :, 0] >= 0])
    matches = [match_objects(*one, y) for one, y in zip(every, targets, strict=True)]
    values = {key: float(value) for key, value in metrics.compute().items()}
    split = opened.data.splits[name]
    groups = split.part.groups_of([split.indices[i] for i in positions])
    return Judged(name, positions, every, targets, matches, values, groups)


def format_verdict(judged: Judged, by_class: Sequence[float], names: Sequence[str], iterate: str) -> list[str]:
    """Return sentences with the results.

    Args:
        judged: Detections of the held-out split.
        by_class: Average precision of each class; NaN for a class without an object.
        names: Names of the classes.
        iterate: State of the training that is shown.
    """
    values, split = judged.metrics, format_split(judged.name)
    objects = sum(len(one.true) for one in judged.matches)
    low, high = bootstrap_map(collect_matches(judged.found, judged.targets), groups=judged.groups)
    drawn = "groups of images" if has_groups(judged.groups) else "images"
    sentences = [
        f"{split.capitalize()} mean average precision: {values['map']:.3f} over IoU 0.5 to 0.95 (95% interval "
        f"{low:.3f} to {high:.3f}, by drawing {drawn} again), {values['map50']:.3f} at 0.5 and {values['map75']:.3f} "
        f"at 0.75, on {objects:,} objects of {len(judged.positions):,} images.",
        f"This is the {iterate}.",
    ]
    measured = [(value, name) for value, name in zip(by_class, names, strict=True) if value == value]
    if measured:
        worst, name = min(measured)
        sentences[1] += f" Average precision is lowest for class {name}: {worst:.3f}."
    if objects < 100:
        sentences.append(f"Average precision of {objects:,} objects is rough: annotate more to compare models by it.")
    return sentences


def render_classes(opened: LoadedRun, judged: Judged, threshold: float) -> Markup:
    """Return a table of the classes.

    Args:
        opened: Run of the detector.
        judged: Detections of the held-out split.
        threshold: Score from which precision and recall are counted.
    """
    learned = opened.data.labeled_counts().tolist()
    rows = []
    for k, name in enumerate(opened.data.class_names):
        counts = count_matches(judged.matches, threshold, k)
        value = judged.metrics.get(f"{AP}{k}")
        measured = (f"{counts.precision:.3f}" if counts.found else "-", f"{counts.recall:.3f}" if counts.true else "-")
        rows.append((name, learned[k], counts.true, "-" if value is None else f"{value:.3f}", counts.found, *measured))
    split = format_split(judged.name)
    head = ("class", "training objects", f"{split} objects", "AP", "found", "precision", "recall")
    note = (
        f"AP counts all scores, over IoU 0.5 to 0.95. Found, precision and recall: detections of a score from "
        f"{threshold:.2f}, right at an IoU of 0.5."
    )
    return render_note(note) + render_table(head, rows)


def render_threshold(judged: Judged, chosen: Judged, threshold: float) -> Markup:
    """Return what scores mean: precision and recall from some of them on.

    Args:
        judged: Detections of the held-out split.
        chosen: Detections of the split that the threshold was chosen on.
        threshold: Score at which the F1 of that split is largest.
    """
    note = (
        f"At a score of {threshold:.2f}, the F1 of the {format_split(chosen.name)} split at an IoU of 0.5 is largest. "
        "Set it (predict --model.score_threshold) by what a false detection costs against a missed one; "
        "leave it low where average precision is measured."
    )
    if chosen.name == judged.name:
        note += (
            " The table counts the same images that the threshold was chosen on, so that it looks a little too good."
        )
    rows = []
    for score in sorted({0.05, 0.1, 0.3, 0.5, 0.7, 0.9, round(threshold, 2)}):
        counts = count_matches(judged.matches, threshold if score == round(threshold, 2) else score)
        rows.append(
            (f"{score:.2f}", counts.found, f"{counts.precision:.3f}", f"{counts.recall:.3f}", f"{counts.f1:.3f}")
        )
    return render_note(note) + render_table(("score from", "found", "precision", "recall", "F1"), rows)


def render_pair(x: Tensor, y: Tensor, found: Detections, names: Sequence[str]) -> Markup:
    """Return an image with its true boxes beside the same with the found ones.

    Args:
        x: Image as networks see it, (C, S, S).
        y: Its objects, (M, 6), as in `sft_lightning.data.vision.boxes`.
        found: Detections of the image, (K, ...) each.
        names: Names of the classes.
    """
    true = y[:, 0].long()
    pairs = zip(true.tolist(), y[:, 5].tolist(), strict=True)
    kinds = [names[k] + (" (ignored)" if is_ignored else "") for k, is_ignored in pairs]
    drawn = draw_boxes(to_pixels(x), y[:, 1:5], true, kinds, _SIDE)
    return render_examples([_embed(drawn, "true boxes"), render_found(x, found, names)], "pair")


def render_found(x: Tensor, found: Detections, names: Sequence[str]) -> Markup:
    """Return an image with the found boxes.

    Args:
        x: Image as networks see it, (C, S, S).
        found: Detections of the image, (K, ...) each.
        names: Names of the classes.
    """
    return _embed(draw_found(to_pixels(x), found.boxes, found.classes, found.scores, names, _SIDE), "found boxes")


def _embed(drawn: Image.Image, text: str) -> Markup:
    return figures.embed_image(pil_to_tensor(drawn) / 255, text, _SIDE)


def render_worst(opened: LoadedRun, judged: Judged, threshold: float) -> Markup:
    """Return the images of the lowest F1, with their true boxes and the found ones.

    Args:
        opened: Run of the detector.
        judged: Detections of the held-out split.
        threshold: Score from which detections are shown.
    """
    counts = [count_matches([one], threshold) for one in judged.matches]
    order = sorted(range(len(counts)), key=lambda i: (counts[i].f1, counts[i].right - counts[i].true))[:_NUM_WORST]
    tiles = []
    for i in order:
        position = judged.positions[i]
        x: Any = opened.data.inputs_of(judged.name, [position])
        found, y = judged.found[i], judged.targets[i]
        shown = found.scores >= threshold
        names = opened.data.class_names
        drawn = render_pair(x[0], y, Detections(*(part[shown] for part in found)), names)
        identifier = opened.data.splits[judged.name].ids[position]
        missed, false = counts[i].true - counts[i].right, counts[i].found - counts[i].right
        lines = [f"F1 {counts[i].f1:.2f}", f"{missed} missed, {false} false", identifier]
        tiles.append((drawn, lines))
    note = f"Left the true boxes, right the found ones of a score from {threshold:.2f}, as the network sees the images."
    return render_note(note) + render_tiles(tiles)
