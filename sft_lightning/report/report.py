"""`sft-lightning report RUN`: what a run came to, as one page."""

from pathlib import Path

import torch
from torch import Tensor

from sft_lightning import AutoencoderModule
from sft_lightning.cli.loaded_run import LoadedRun, describe_checkpoint, sample_positions
from sft_lightning.cli.logging import silence_logs
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.paradigms.metrics import wilson
from sft_lightning.report import figures
from sft_lightning.report.evaluation import Evaluation, Predictions
from sft_lightning.report.examples import (
    format_split,
    render_attention,
    render_label_next,
    render_mistakes,
    render_reconstructions,
)
from sft_lightning.report.metrics import (
    bin_reliability,
    compute_calibration_error,
    count_confusions,
    project_pca,
    project_umap,
)
from sft_lightning.report.run_sections import render_health, render_origin, render_training
from sft_lightning.runs.lock import is_training
from sft_lightning.runs.record import RunRecord
from sft_lightning.training.callbacks.csv_log import read_curves
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.html import Section, render_matrix, render_page, render_table

_MAPPED, _MATRIX = 1000, 30  # examples of the map; classes whose confusion matrix can be read


def report(run: str, out: str | None = None, label_next: int = 20) -> Path:
    """Writes `report.html`, and `label_next.csv` beside it where there are unlabeled examples.

    Args:
        run: Folder of a run (its last checkpoint), or a checkpoint.
        out: The file; null for `report.html` in the run's folder.
        label_next: How many unlabeled examples are proposed to be labeled next; 0 for none.

    Returns:
        The file.

    Raises:
        InputError: There is no such run, or nothing to judge it by.
    """
    check_min(0, label_next=label_next)
    with silence_logs():
        opened = LoadedRun(run)
        path = Path(out) if out is not None else opened.folder / "report.html"
        if opened.trained.head:
            verdict, sections = _describe_classifier(opened, path.with_name("label_next.csv"), label_next)
        elif isinstance(opened.cli.model, AutoencoderModule):
            verdict = [
                f"This is a pre-training without labels, shown at the {_describe_iterate(opened)}.",
                "Whether it helps, runs that start from it have to show, over several seeds.",
            ]
            sections = [
                Section("What it redraws", render_reconstructions(opened)),
                Section("How it learned", render_training(read_curves(opened.folder))),
            ]
        else:
            raise InputError(f"run {run!r} ({opened.trained.metadata['made_by']}) has no classifier: give one that has")
        sections.append(Section("Where it comes from", render_origin(opened)))
    about, data = opened.trained.metadata, opened.data
    under = f"{about['made_by']} on {about['backbone']}, data {data.source.name}"
    under += f", {len(data.splits['labeled']):,} labels" if opened.trained.head else ""
    write_text(path, render_page(f"Run {'/'.join(opened.folder.resolve().parts[-2:])}", under, verdict, sections))
    return path


def _describe_iterate(opened: LoadedRun) -> str:
    return describe_checkpoint(opened.checkpoint, opened.trained.metadata["step"])


def _describe_classifier(opened: LoadedRun, path: Path, label_next: int) -> tuple[list[str], list[Section]]:
    is_on_its_way = is_training(opened.folder)
    facts, found = Evaluation(opened), read_curves(opened.folder)
    unlabeled = facts.unlabeled()
    said, calibration = _render_calibration(facts)
    accuracy, caveats = _format_verdict(facts, _describe_iterate(opened))
    caveats += [f"{leak[:1].upper()}{leak[1:]}." for leak in RunRecord(opened.folder).chain[-1].get("leaks", [])]
    if is_on_its_way:
        caveats.append("The run is still being trained: this is not its end.")
    sections = [
        Section("Classes and what they are taken for", _render_classes(facts)),
        Section("Can its confidence be trusted?", calibration),
        Section("How it learned", render_training(found)),
        Section("Health of the pseudo-labels", render_health(found)),
        Section("Its worst mistakes", render_mistakes(facts)),
        Section("Where it looks", render_attention(facts)),
        Section("Map of the features", _render_map(facts, unlabeled)),
        Section("What to label next", render_label_next(facts, unlabeled, path, label_next)),
    ]
    return [*accuracy, said, *caveats], sections


def _format_verdict(facts: Evaluation, iterate: str) -> tuple[list[str], list[str]]:
    """What it reaches, and what that does not say."""
    judged, names = facts.judged, facts.class_names
    low, high = wilson(judged.accuracy, len(judged.ids))
    right = judged.predicted == judged.labels
    shares = {c: float(right[judged.labels == c].double().mean()) for c in judged.labels.unique().tolist()}
    worst = min(shares, key=lambda c: shares[c])
    found = [
        f"{judged.accuracy:.1%} of {len(judged.ids):,} {format_split(judged.name)} images right "
        f"(95 % interval {low:.1%} to {high:.1%}).",
        f"This is the {iterate}. Class {names[worst]} is found least often: {shares[worst]:.1%}.",
    ]
    caveats = ["There is no test split: if the validation split chose anything, this is too good."]
    one = "One run does not say whether unlabeled images helped: a study over several seeds does."
    return found, [*caveats[: judged.name == "val"], one]


def _render_classes(facts: Evaluation) -> str:
    judged, names = facts.judged, facts.class_names
    counts = count_confusions(judged, len(names))
    labels = torch.bincount(facts.labeled.labels, minlength=len(names)).tolist()
    rows = []
    for c, name in enumerate(names):
        hit, true, said = (int(n) for n in (counts[c, c], counts[c].sum(), counts[:, c].sum()))
        rows.append(
            (name, labels[c], true, f"{hit / true:.1%}" if true else "-", f"{hit / said:.1%}" if said else "never said")
        )
    head = ("class", "labels", judged.name, "recall", "precision")
    if len(names) <= _MATRIX:
        confusions = render_matrix(counts.tolist(), names)
        return f'<div class="beside"><div>{render_table(head, rows)}</div><div>{confusions}</div></div>'
    apart = (counts - counts.diag().diag()).flatten()
    pairs = [(int(n), *divmod(int(k), len(names))) for n, k in zip(*apart.topk(_MATRIX), strict=True) if n]
    confused = [(names[true], names[said], n) for n, true, said in pairs]
    return (
        render_table(head, rows)
        + "<h3>Most frequent confusions</h3>"
        + render_table(("true", "predicted", "images"), confused)
    )


def _render_calibration(facts: Evaluation) -> tuple[str, str]:
    """A sentence for the verdict, and the section."""
    judged = facts.judged
    error = compute_calibration_error(judged.logits, judged.labels)
    sure = float(judged.logits.softmax(1).max(1).values.mean())
    word = "too sure" if sure > judged.accuracy else "not sure enough"
    said = f"It is {word}: its mean confidence is {sure:.1%}; the calibration error is {error:.3f}"
    before = bin_reliability(judged.logits, judged.labels)
    if facts.validation is None:
        told = "There is no validation split beside it to find a temperature on."
        return f"{said}.", f"<p>{told}</p>" + figures.draw_reliability(before, None)
    t = fit_temperature(facts.validation.logits, facts.validation.labels)
    scaled = compute_calibration_error(judged.logits / t, judged.labels)
    drawn = figures.draw_reliability(before, bin_reliability(judged.logits / t, judged.labels))
    told = (
        f"Expected calibration error on the {format_split(judged.name)} split: {error:.3f}, {scaled:.3f} with all "
        f"logits divided by the temperature {t:.2f}, which fits the validation split best. Dots below the dotted line "
        "are too sure; larger dots are more examples."
    )
    return f"{said}, {scaled:.3f} after its temperature is set to {t:.2f} (on the validation split).", (
        f'<p class="soft">{told}</p>{drawn}'
    )


def _render_map(facts: Evaluation, unlabeled: Predictions | None) -> str:
    others = facts.judged if unlabeled is None else unlabeled
    known, rest = (sample_positions(len(of.ids), _MAPPED, facts.data.request.seed) for of in (facts.labeled, others))
    x = torch.cat([facts.labeled.features[known], others.features[rest]])
    # The hidden label of an unlabeled example is nobody's business: its predicted class is what there is.
    shown = (others.labels if unlabeled is None else others.predicted)[rest]
    words = (
        f"{format_split(others.name)} images by their class"
        if unlabeled is None
        else "unlabeled images by their predicted class"
    )
    told = f"Large and ringed: {len(known):,} labeled images by their class. Small: {len(rest):,} {words}."

    def drawn(places: Tensor, title: str) -> str:
        labels, count = facts.labeled.labels[known], len(known)
        return figures.draw_feature_map(places[:count], labels, places[count:], shown, facts.class_names, title)

    places, share = project_pca(x)
    maps = [drawn(places, f"Main directions (PCA): {float(share[0]):.0%} and {float(share[1]):.0%} of the variance")]
    near = project_umap(x)
    if near is not None:
        maps.append(drawn(near, "Neighbors stay neighbors (UMAP)"))
    return f'<p class="soft">{told}</p><div class="row">{"".join(maps)}</div>'
