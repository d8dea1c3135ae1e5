"""`sft-lightning report RUN`: what a run came to, as one page."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from sft_lightning import __version__
from sft_lightning.console import hushed
from sft_lightning.lineage import chain_of, write_text
from sft_lightning.lineage import told as chain_in_words
from sft_lightning.report import figures
from sft_lightning.report.attention import grad_cam, last_map
from sft_lightning.report.facts import (
    Facts,
    Judged,
    calibration_error,
    confusion,
    flat,
    reliability,
    temperature,
    to_label_next,
    wilson,
)
from sft_lightning.report.page import Section, folded, matrix, page, table, tiles

_SHOWN, _NEAR, _NEXT, _LOOKED = 12, 3, 24, 6
_HEALTH = ("pseudo_labels/accepted", "pseudo_labels/accuracy", "pseudo_labels/distance")


def report(run: str, out: str | None = None) -> Path:
    """Writes `report.html`, and `label_next.csv` beside it where there are unlabeled examples.

    Args:
        run: Folder of a run with a classifier (its last checkpoint), or a checkpoint.
        out: The file; null for `report.html` in the run's folder.

    Returns:
        The file.

    Raises:
        InputError: There is no such run, or nothing to judge it by.
    """
    with hushed():
        facts = Facts(run)
        path = Path(out) if out is not None else facts.folder / "report.html"
        unlabeled = facts.unlabeled()
        verdict, calibration = _calibration(facts)
        sections = [
            Section("Classes", _classes(facts)),
            Section("Can its confidence be trusted?", calibration),
            Section("How it learned", _curves(facts)),
            Section("Its most confident mistakes", _mistakes(facts)),
            Section("Where it looks", _attention(facts)),
            Section("Map of the features", _map(facts, unlabeled)),
            Section("What to label next", _next(facts, unlabeled, path.with_name("label_next.csv"))),
            Section("Where it comes from", _provenance(facts)),
        ]
    backbone, made_by = facts.about["backbone"], facts.about["made_by"]
    under = f"{made_by} on {backbone}, {facts.data.source.name}, {len(facts.labeled.ids):,} labels; {facts.folder}"
    write_text(path, page("What this run came to", under, [*_verdict(facts), *verdict], sections))
    return path


def _verdict(facts: Facts) -> list[str]:
    judged, names = facts.judged, facts.class_names
    low, high = wilson(judged.accuracy, len(judged.ids))
    right = judged.predicted == judged.labels
    shares = {c: float(right[judged.labels == c].double().mean()) for c in judged.labels.unique().tolist()}
    worst = min(shares, key=lambda c: shares[c])
    kind = "test" if judged.name == "test" else "validation"
    found = [
        f"{judged.accuracy:.1%} of {len(judged.ids):,} {kind} images right (95 % interval {low:.1%} to {high:.1%}); "
        f"class {names[worst]} is found least often: {shares[worst]:.1%}."
    ]
    if kind == "validation":
        found.append("There is no test split: if the validation split chose anything, this is too good.")
    found.append("One run does not say whether unlabeled images helped: a study over several seeds does.")
    return found


def _classes(facts: Facts) -> str:
    judged, names = facts.judged, facts.class_names
    counts = confusion(judged, len(names))
    labels = torch.bincount(facts.labeled.labels, minlength=len(names)).tolist()
    rows = []
    for c, name in enumerate(names):
        hit, true, said = (int(n) for n in (counts[c, c], counts[c].sum(), counts[:, c].sum()))
        rows.append(
            (name, labels[c], true, f"{hit / true:.1%}" if true else "-", f"{hit / said:.1%}" if said else "never said")
        )
    head = ("class", "labels", judged.name, "recall", "precision")
    return table(head, rows) + "<h3>Confusion</h3>" + matrix(counts.tolist(), names)


def _calibration(facts: Facts) -> tuple[list[str], str]:
    """A sentence for the verdict, and the section."""
    judged = facts.judged
    error = calibration_error(judged.logits, judged.labels)
    sure = float(judged.logits.softmax(1).max(1).values.mean())
    word = "too sure" if sure > judged.accuracy else "not sure enough"
    said = f"It is {word}: its mean confidence is {sure:.1%}; the calibration error is {error:.3f}"
    if facts.validation is None:
        return [f"{said}."], figures.reliability(reliability(judged.logits, judged.labels), None) + (
            "<p>There is no validation split beside it to find a temperature on.</p>"
        )
    t = temperature(facts.validation.logits, facts.validation.labels)
    scaled = calibration_error(judged.logits / t, judged.labels)
    drawn = figures.reliability(
        reliability(judged.logits, judged.labels), reliability(judged.logits / t, judged.labels)
    )
    body = (
        f"<p>Calibration error {error:.3f}; {scaled:.3f} with temperature {t:.2f}, found on the validation split.</p>"
    )
    return [f"{said}, {scaled:.3f} after its temperature is set to {t:.2f} (on the validation split)."], body + drawn


def _curves(facts: Facts) -> str:
    found = facts.curves
    if not found:
        return "<p>There is no metrics.csv in the run's folder.</p>"
    losses = [name for name in found if name.startswith("train/") and "threshold" not in name and name != "train/ratio"]
    groups: list[tuple[str, Sequence[str]]] = [
        ("training", losses[:6]),
        ("validation", ["val/accuracy", "val/macro_f1", "val/calibration_error", "val/knn_accuracy"]),
        ("validation loss", ["val/loss"]),
        ("health of the pseudo-labels", _HEALTH),
    ]
    return figures.curves(found, groups)


def _mistakes(facts: Facts) -> str:
    judged, names = facts.judged, facts.class_names
    p = judged.logits.softmax(1)
    wrong = (judged.predicted != judged.labels).nonzero()[:, 0]
    if not len(wrong):
        return "<p>There is none.</p>"
    chosen = wrong[p[wrong].max(1).values.argsort(descending=True)][:_SHOWN].tolist()
    known = F.normalize(facts.labeled.features, dim=1)
    near = (F.normalize(judged.features[chosen], dim=1) @ known.T).topk(min(_NEAR, len(known)), 1).indices
    neighbors = facts.data.pictures_of("labeled", near.flatten().tolist())
    shown = []
    for row, (i, x) in enumerate(zip(chosen, facts.data.pictures_of(judged.name, chosen), strict=True)):
        own = neighbors[row * near.shape[1] : (row + 1) * near.shape[1]]
        beside = "".join(figures.picture(one, 48) for one in own)
        guess = int(judged.predicted[i])
        lines = [f"{names[guess]}, {float(p[i, guess]):.0%} sure", f"is {names[int(judged.labels[i])]}", judged.ids[i]]
        shown.append((f'{figures.picture(x)}<div class="near">{beside}</div>', lines))
    return '<p class="soft">Below each, the three labeled images nearest to it in the features.</p>' + tiles(shown)


def _attention(facts: Facts) -> str:
    """Of its surest hits and mistakes."""
    module = last_map(facts.backbone)
    if module is None:
        return f'<p class="soft">{facts.about["backbone"]} has no map of places to look at (Grad-CAM).</p>'
    judged, names = facts.judged, facts.class_names
    sure = judged.logits.softmax(1).max(1).values
    right = judged.predicted == judged.labels
    chosen = [i for group in (right, ~right) for i in torch.where(group, sure, -1).topk(_LOOKED).indices.tolist()]
    chosen = [i for k, i in enumerate(chosen) if bool(right[i]) == (k < _LOOKED)]  # there may be fewer
    x = facts.data.pictures_of(judged.name, chosen)
    heat = grad_cam(facts.backbone, facts.head, module, x, judged.predicted[chosen])
    shown = []
    for i, image, own in zip(chosen, x, heat, strict=True):
        truth = "right" if right[i] else f"is {names[int(judged.labels[i])]}"
        shown.append((figures.heated(image, own), [f"{names[int(judged.predicted[i])]}: {truth}", judged.ids[i]]))
    return '<p class="soft">Red speaks for the class that it says (Grad-CAM).</p>' + tiles(shown)


def _map(facts: Facts, unlabeled: Judged | None) -> str:
    others = facts.judged if unlabeled is None else unlabeled
    few = slice(2000)
    places, share = flat(torch.cat([facts.labeled.features[few], others.features[few]]))
    count = len(facts.labeled.features[few])
    labels = facts.labeled.labels[few]
    # The hidden label of an unlabeled example is nobody's business: its predicted class is what there is.
    shown = (others.labels if unlabeled is None else others.predicted)[few]
    words = "test images by their class" if unlabeled is None else "unlabeled images by their predicted class"
    drawn = figures.feature_map(places[:count], labels, places[count:], shown, facts.class_names, share)
    told = f"Large and ringed: labeled images. Small: {words}. The two main directions of {len(places):,} images (PCA)."
    return f'<p class="soft">{told}</p>{drawn}'


def _next(facts: Facts, unlabeled: Judged | None, path: Path) -> str:
    if unlabeled is None:
        return ""
    p = unlabeled.logits.double().softmax(1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1) / math.log(p.shape[1])
    chosen = to_label_next(unlabeled, facts.labeled.features, _NEXT)
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(("order", "id", "predicted", "uncertainty"))
    names = facts.class_names
    for order, i in enumerate(chosen, 1):
        writer.writerow((order, unlabeled.ids[i], names[int(unlabeled.predicted[i])], f"{float(entropy[i]):.4f}"))
    write_text(path, sheet.getvalue())
    pictures = facts.data.pictures_of(unlabeled.name, chosen)
    shown = [
        (figures.picture(x), [f"{k}. maybe {names[int(unlabeled.predicted[i])]}", unlabeled.ids[i]])
        for k, (i, x) in enumerate(zip(chosen, pictures, strict=True), 1)
    ]
    words = (
        f"Uncertain and unlike those that are labeled, of {len(unlabeled.ids):,} unlabeled images; also {path.name}."
    )
    return f'<p class="soft">{words}</p>' + tiles(shown)


def _provenance(facts: Facts) -> str:
    folder = facts.folder
    chain = chain_of(folder)
    counts = ", ".join(f"{len(s):,} {n}" for n, s in facts.data.splits.items() if " " not in n)
    link = chain[-1]
    rows = [
        ("run", folder),
        ("data", f"{facts.data.source.name}: {counts}"),
        ("SHA-256 of the data", link.get("data_sha256") or "-"),
        ("step", facts.about["step"]),
        ("trained", link.get("date", "-")),
        (
            "versions",
            f"sft-lightning {link.get('version', __version__)}; report by {__version__}, torch {torch.__version__}",
        ),
        ("report made on", f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"),
    ]
    parts = [table(("", ""), rows, "facts"), folded("Lineage, the source first", chain_in_words(chain))]
    config = folder / "fit.yaml"
    if config.is_file():
        parts.append(folded("Config", config.read_text(encoding="utf-8")))
    parts.append(
        folded("What the weights say", json.dumps({k: v for k, v in facts.about.items() if k != "chain"}, indent=1))
    )
    return "".join(parts)
