"""The sections of a report that show pictures."""

import html
import math
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F

from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.networks.weights import read_weights
from sft_lightning.report import figures
from sft_lightning.report.attention import compute_grad_cam, find_last_map
from sft_lightning.report.evaluation import Evaluation, Predictions
from sft_lightning.report.metrics import choose_to_label
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.html import render_tiles
from sft_lightning.utils.spreadsheet import format_csv

_SHOWN, _NEAR, _LOOKED = 6, 3, 6


def format_split(name: str) -> str:
    """A split in words.

    Args:
        name: `val`, or another.
    """
    return "validation" if name == "val" else name


def render_mistakes(facts: Evaluation) -> str:
    """Those of the largest loss and the surest ones, each with its nearest labeled images.

    Args:
        facts: Of a classifier.
    """
    judged = facts.judged
    wrong = (judged.predicted != judged.labels).nonzero()[:, 0]
    if not len(wrong):
        return "<p>There is none.</p>"
    sure = judged.logits.softmax(1).max(1).values
    largest = wrong[judged.losses[wrong].argsort(descending=True, stable=True)][:_SHOWN].tolist()
    surest = wrong[sure[wrong].argsort(descending=True, stable=True)][:_SHOWN].tolist()
    others = [i for i in surest if i not in largest]
    told = "Below each, the three labeled images nearest to it in the features, and their classes."
    found = f'<p class="soft">{told}</p><h3>Largest loss</h3>' + render_tiles(_make_mistake_tiles(facts, largest))
    if others:
        found += "<h3>Most confident of the others</h3>" + render_tiles(_make_mistake_tiles(facts, others))
    return found


def _make_mistake_tiles(facts: Evaluation, chosen: list[int]) -> list[tuple[str, list[str]]]:
    """Mistakes, each with its nearest labeled examples."""
    judged, names = facts.judged, facts.class_names
    p = judged.logits.softmax(1)
    known = F.normalize(facts.labeled.features, dim=1)
    near = (F.normalize(judged.features[chosen], dim=1) @ known.T).topk(min(_NEAR, len(known)), 1).indices
    neighbors = facts.data.pictures_of("labeled", near.flatten().tolist()).unflatten(0, near.shape)
    shown = []
    for i, x, own, at in zip(
        chosen, facts.data.pictures_of(judged.name, chosen), neighbors, near.tolist(), strict=True
    ):
        classes = [names[int(facts.labeled.labels[j])] for j in at]
        beside = "".join(
            figures.embed_image(one, f"{n}: {facts.labeled.ids[j]}", 48)
            for one, n, j in zip(own, classes, at, strict=True)
        )
        guess, true = int(judged.predicted[i]), int(judged.labels[i])
        lines = [
            f"{names[guess]}, {float(p[i, guess]):.0%} sure",
            f"is {names[true]}; loss {float(judged.losses[i]):.2f}",
            f"near: {', '.join(f'{n} x {c}' if n > 1 else c for c, n in Counter(classes).items())}",
            judged.ids[i],
        ]
        shown.append((f'{figures.embed_image(x, judged.ids[i])}<p class="near">{beside}</p>', lines))
    return shown


def render_attention(facts: Evaluation) -> str:
    """Where it looks in its surest hits and mistakes.

    Args:
        facts: Of a classifier.
    """
    module = find_last_map(facts.backbone)
    if module is None:
        return f'<p class="soft">{html.escape(facts.about["backbone"])} has no map of places to look at (Grad-CAM).</p>'
    judged, names = facts.judged, facts.class_names
    sure = judged.logits.softmax(1).max(1).values
    right = judged.predicted == judged.labels
    chosen = [i for group in (right, ~right) for i in torch.where(group, sure, -1).topk(_LOOKED).indices.tolist()]
    chosen = [i for k, i in enumerate(chosen) if bool(right[i]) == (k < _LOOKED)]  # there may be fewer
    x = facts.data.pictures_of(judged.name, chosen)
    heat = compute_grad_cam(facts.backbone, facts.head, module, x, judged.predicted[chosen])
    shown = []
    for i, image, own in zip(chosen, x, heat, strict=True):
        truth = "right" if right[i] else f"is {names[int(judged.labels[i])]}"
        both = (
            figures.embed_image(image, judged.ids[i]),
            figures.embed_image(figures.overlay_heat(image, own), "where it looks"),
        )
        shown.append((_pair(*both), [f"{names[int(judged.predicted[i])]}: {truth}", judged.ids[i]]))
    told = "Its surest hits and its surest mistakes; red and yellow speak for the class that it says (Grad-CAM)."
    return f'<p class="soft">{told}</p>' + render_tiles(shown)


def render_label_next(facts: Evaluation, unlabeled: Predictions | None, path: Path, count: int) -> str:
    """What to label next, here and as a CSV.

    Args:
        facts: Of a classifier.
        unlabeled: Those to choose from, if there are any.
        path: Of the CSV.
        count: How many to choose.
    """
    if unlabeled is None or not count:
        return ""
    names = facts.class_names
    p = unlabeled.logits.double().softmax(1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1) / math.log(p.shape[1])
    chosen = choose_to_label(unlabeled, facts.labeled.features, count)
    rows = [
        (order, unlabeled.ids[i], names[int(unlabeled.predicted[i])], f"{float(entropy[i]):.4f}")
        for order, i in enumerate(chosen, 1)
    ]
    write_text(path, format_csv([("order", "id", "predicted", "uncertainty"), *rows]))
    shown = [
        (figures.embed_image(x, name), [f"{order}. maybe {guess}", f"uncertainty {value}", name])
        for x, (order, name, guess, value) in zip(facts.data.pictures_of(unlabeled.name, chosen), rows, strict=True)
    ]
    told = (
        f"Uncertain and unlike those that are labeled and each other, of {len(unlabeled.ids):,} unlabeled images. "
        f"Uncertainty is the entropy of the prediction, 1 where all classes are equally likely. Also in {path.name}."
    )
    return f'<p class="soft">{html.escape(told)}</p>' + render_tiles(shown)


def render_reconstructions(opened: LoadedRun) -> str:
    """Pictures of the held-out split, and what an autoencoder makes of them.

    Args:
        opened: A run of one.
    """
    model, name = opened.cli.model, opened.held_out
    model.load_state_dict(read_weights(opened.checkpoint)[0])
    ids = opened.data.splits[name].ids[:_SHOWN]
    x = opened.data.pictures_of(name, [*range(len(ids))])
    with torch.no_grad():
        made = model.eval()(x)
    error = (made - x).square().flatten(1).mean(1)
    shown = [
        (_pair(figures.embed_image(one, known), figures.embed_image(drawn, "redrawn")), [f"error {value:.4f}", known])
        for one, drawn, value, known in zip(x, made, error.tolist(), ids, strict=True)
    ]
    shown_split = f"The first {len(x)} {format_split(name)} images"
    told = f"{shown_split}, each beside its reconstruction, with the mean squared error of its pixels."
    return f'<p class="soft">{told}</p>' + render_tiles(shown)


def _pair(one: str, other: str) -> str:
    return f'<p class="pair">{one}{other}</p>'
