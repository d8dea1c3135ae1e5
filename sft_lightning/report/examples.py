"""Render the sections of a report that show examples."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from torch.nn import functional as F

from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.data.label_sets import show_label
from sft_lightning.losses.reconstruction import compute_reconstruction_errors
from sft_lightning.networks.weights import read_weights
from sft_lightning.report import figures
from sft_lightning.report.evaluation import Evaluation, Predictions
from sft_lightning.report.explainer import Explainer, find_explainer
from sft_lightning.report.metrics import choose_to_label
from sft_lightning.tasks.intervals import has_groups
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.html import render_examples, render_heading, render_note, render_tiles
from sft_lightning.utils.spreadsheet import format_csv

_NUM_SHOWN, _NUM_NEIGHBORS, _NUM_EXPLAINED = 6, 3, 6


def format_split(name: str) -> str:
    """Return the name of a split for readers.

    Args:
        name: Name of the split in the code, such as `val`.
    """
    return "validation" if name == "val" else name


def format_groups(groups: Sequence[str] | None) -> str:
    """Return of how many groups examples are, which makes intervals wider, or nothing where none belong together.

    Args:
        groups: Group of each example, or None.
    """
    if groups is None or not has_groups(groups):
        return ""
    count = len(set(groups))
    return " of 1 group" if count == 1 else f" of {count:,} groups"


def render_mistakes(evaluation: Evaluation) -> Markup:
    """Return the mistakes of the largest loss and the most confident ones, each with its nearest labeled examples.

    Args:
        evaluation: Evaluation of a classifier.
    """
    judged = evaluation.judged
    wrong = (~judged.is_right).nonzero()[:, 0]
    if not len(wrong):
        return render_note("Every prediction is right.")
    confidence = judged.task.confidence(judged.outputs)
    largest = wrong[judged.losses[wrong].argsort(descending=True, stable=True)][:_NUM_SHOWN].tolist()
    most_confident = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_NUM_SHOWN].tolist()
    others = [i for i in most_confident if i not in largest]
    one, more = evaluation.data.input_spec.noun, evaluation.data.input_spec.plural
    note = f"Below each {one}: the three labeled {more} with the nearest features, and their classes."
    if explains_tiles(find_explainer(evaluation)):
        note += f" What is marked supports the {judged.task.explained_class}."
    rendered = render_note(note)
    rendered += render_heading("Largest loss") + render_tiles(_make_mistake_tiles(evaluation, largest))
    if others:
        rendered += render_heading("Most confident of the others")
        rendered += render_tiles(_make_mistake_tiles(evaluation, others))
    return rendered


def _make_mistake_tiles(evaluation: Evaluation, positions: list[int]) -> list[tuple[Markup, list[str]]]:
    judged, labeled = evaluation.judged, evaluation.labeled
    p, predicted = judged.task.probabilities(judged.outputs), judged.predicted
    sets = evaluation.data.label_sets
    references = F.normalize(labeled.features, dim=1)
    k = min(_NUM_NEIGHBORS, len(references))
    nearest = (F.normalize(judged.features[positions], dim=1) @ references.T).topk(k, 1).indices
    explainer = find_explainer(evaluation)
    if explainer is not None and explains_tiles(explainer):
        drawings = explainer.draw(judged.name, positions, judged.outputs[positions].argmax(1))
    else:
        ids = [judged.ids[i] for i in positions]
        drawings = figures.embed_examples(evaluation.data, judged.name, positions, ids)
    all_neighbors = evaluation.data.show_examples("labeled", nearest.flatten().tolist())
    neighbors = [all_neighbors[k * j : k * (j + 1)] for j in range(len(positions))]
    tiles = []
    for i, drawing, near_x, near in zip(positions, drawings, neighbors, nearest.tolist(), strict=True):
        named = evaluation.data.name_targets(torch.cat([judged.labels[i : i + 1], labeled.labels[near]]))
        true, *classes = (show_label(label, sets) for label in named)
        drawn = [
            figures.embed_example(example, f"{name}: {labeled.ids[j]}", 48)
            for example, name, j in zip(near_x, classes, near, strict=True)
        ]
        lines = [
            judged.task.describe_mistake(p[i], predicted[i], judged.labels[i], evaluation.class_names),
            f"is {true}; loss {float(judged.losses[i]):.2f}",
            f"near: {', '.join(f'{n} x {name}' if n > 1 else name for name, n in Counter(classes).items())}",
            judged.ids[i],
        ]
        tiles.append((drawing + render_examples(drawn, "near"), lines))
    return tiles


def explains_tiles(explainer: Explainer | None) -> bool:
    """Return whether examples are shown with their evidence wherever they are shown.

    Args:
        explainer: What explains the predictions, or None.
    """
    return explainer is not None and explainer.suits_tiles and explainer.reason_against is None


def render_explanations(evaluation: Evaluation) -> tuple[str, Markup]:
    """Return the title and the body of a section: what supports the most confident right and wrong predictions.

    Args:
        evaluation: Evaluation of a classifier.
    """
    explainer = find_explainer(evaluation)
    if explainer is None:
        return "", Markup()
    if (reason := explainer.reason_against) is not None:
        return explainer.title, render_note(reason)
    judged, names = evaluation.judged, evaluation.class_names
    confidence, is_right = judged.task.confidence(judged.outputs), judged.is_right
    truths = [show_label(label, evaluation.data.label_sets) for label in evaluation.data.name_targets(judged.labels)]
    explained = judged.outputs.argmax(1)
    positions = [
        i
        for group in (is_right, ~is_right)
        for i in torch.where(group, confidence, -1).topk(min(_NUM_EXPLAINED, len(group))).indices.tolist()
        if bool(group[i])  # a group with fewer examples than asked for is filled up with those of the other one
    ]
    tiles = []
    for i, drawn in zip(positions, explainer.draw(judged.name, positions, explained[positions]), strict=True):
        truth = "right" if is_right[i] else f"is {truths[i]}"
        tiles.append((drawn, [f"{names[int(explained[i])]}: {truth}", judged.ids[i]]))
    note = explainer.note.replace("predicted class", judged.task.explained_class)
    return explainer.title, render_note(note) + render_tiles(tiles)


def render_label_next(evaluation: Evaluation, unlabeled: Predictions | None, path: Path, count: int) -> Markup:
    """Return the unlabeled examples to label next, and write them to a CSV file.

    Args:
        evaluation: Evaluation of a classifier.
        unlabeled: Predictions of the candidates; None where there are no unlabeled examples.
        path: Path of the CSV file.
        count: Number of examples to choose.
    """
    if unlabeled is None or not count:
        return Markup()
    entropy, predicted = unlabeled.task.uncertainty(unlabeled.outputs), unlabeled.predicted
    positions = choose_to_label(entropy, unlabeled.features, evaluation.labeled.features, count)
    named = evaluation.data.name_targets(predicted[positions])
    rows = [
        (order, unlabeled.ids[i], name, f"{float(entropy[i]):.4f}")
        for order, (i, name) in enumerate(zip(positions, named, strict=True), 1)
    ]
    shown = evaluation.data.show_examples(unlabeled.name, positions)
    written: list[tuple[object, ...]] = [("order", "id", "predicted", "uncertainty"), *rows]
    if shown and isinstance(shown[0], str):  # a column with the examples themselves
        column = [evaluation.data.input_spec.noun, *shown]
        written = [(*row, cell) for row, cell in zip(written, column, strict=True)]
    write_text(path, format_csv(written))
    examples = figures.embed_examples(evaluation.data, unlabeled.name, positions, [unlabeled.ids[i] for i in positions])
    tiles = [
        (x, [f"{order}. maybe {show_label(label, evaluation.data.label_sets)}", f"uncertainty {value}", name])
        for x, (order, name, label, value) in zip(examples, rows, strict=True)
    ]
    more = evaluation.data.input_spec.plural
    note = (
        f"Chosen from {len(unlabeled.ids):,} unlabeled {more}: uncertain, and unlike labeled {more} and each other. "
        f"Uncertainty is {unlabeled.task.uncertainty_note}. Also in {path.name}."
    )
    return render_note(note) + render_tiles(tiles)


def render_reconstructions(opened: LoadedRun) -> Markup:
    """Return held-out examples, each beside its reconstruction by an autoencoder.

    Args:
        opened: Run of an autoencoder.
    """
    model, name = opened.cli.model, opened.held_out
    model.load_state_dict(read_weights(opened.checkpoint)[0])
    ids = opened.data.splits[name].ids[:_NUM_SHOWN]
    x = opened.data.inputs_of(name, [*range(len(ids))])
    with torch.no_grad():
        reconstructed = model.eval()(x)
    errors = compute_reconstruction_errors(reconstructed, x)
    views = opened.data.views
    tiles = []
    for shown, other, error, identifier in zip(
        views.show(x), views.show(reconstructed), errors.tolist(), ids, strict=True
    ):
        pair = [figures.embed_example(shown, identifier), figures.embed_example(other, "reconstruction")]
        tiles.append((render_examples(pair, "pair"), [f"error {error:.4f}", identifier]))
    note = (
        f"The first {len(ids)} {format_split(name)} {opened.data.input_spec.plural} beside their reconstructions, with "
        "the mean squared error."
    )
    return render_note(note) + render_tiles(tiles)
