"""`sft-lightning report RUN`: write the results of a run as one page."""

from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from sft_lightning import AutoencoderModule, SelfSupervisedModule
from sft_lightning.cli.loaded_run import LoadedRun, describe_checkpoint, sample_positions
from sft_lightning.cli.logging import silence_logs
from sft_lightning.paradigms.defect_detector import DefectDetector
from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
from sft_lightning.report import boxes, class_sets, figures, one_class, pixels
from sft_lightning.report.calibration import render_calibration
from sft_lightning.report.defects import DetectorReport
from sft_lightning.report.evaluation import Evaluation, Predictions
from sft_lightning.report.examples import (
    format_split,
    render_explanations,
    render_label_next,
    render_mistakes,
    render_reconstructions,
)
from sft_lightning.report.metrics import project_pca, project_umap
from sft_lightning.report.run_sections import render_health, render_origin, render_training
from sft_lightning.report.sensitivity import render_sensitivity
from sft_lightning.runs.lock import is_training
from sft_lightning.runs.paths import LOGS
from sft_lightning.runs.record import RunRecord, read_leaks
from sft_lightning.runs.temperature import read_temperature
from sft_lightning.training.callbacks.metrics_csv import read_curves
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.html import Section, render_columns, render_note, render_page

_PLACES = {"pixel_auroc": "AUROC of places", "pro": "PRO up to 30% of false places"}
_MAX_MAPPED = 1000  # examples of each kind on a map of the features
_PARTS: dict[str, Any] = {"class": one_class, "class_set": class_sets}  # by the target of the task


def report(run: str, out: str | None = None, label_next: int = 20, specificity: float = 0.95) -> Path:
    """Write `report.html`, and `label_next.csv` beside it if there are unlabeled examples.

    Args:
        run: Folder of a run (its last checkpoint), or a checkpoint.
        out: Path of the page; null for `report.html` in the run's folder.
        label_next: Number of unlabeled examples to propose for labeling; 0 for none.
        specificity: Specificity at which the sensitivity of each class is counted, above 0 and below 1.

    Returns:
        Path of the page.

    Raises:
        InputError: There is no such run, or nothing to evaluate it on.
    """
    check_min(0, label_next=label_next)
    if not 0 < specificity < 1:
        raise InputError(f"specificity is {specificity}: give a share above 0 and below 1, such as 0.95")
    with silence_logs():
        opened = LoadedRun(run, takes_defects=True)
        path = Path(out) if out is not None else opened.folder / "report.html"
        if isinstance(opened.cli.model, FineTuneDetector):
            verdict, figure, sections = boxes.describe_run(opened, _describe_iterate(opened))
            verdict += _list_caveats(opened, is_training(opened.folder))
        elif opened.classify is not None and opened.trained.is_dense:
            is_unfinished = is_training(opened.folder)
            next_path = path.with_name("label_next.csv")
            verdict, figure, sections = pixels.describe_run(opened, _describe_iterate(opened), next_path, label_next)
            verdict += _list_caveats(opened, is_unfinished)
        elif opened.classify is not None:
            next_path = path.with_name("label_next.csv")
            verdict, figure, sections = _describe_classifier(opened, next_path, label_next, specificity)
        elif isinstance(opened.cli.model, AutoencoderModule):
            curves = read_curves(opened.folder)
            figure = figures.draw_curves(curves or {}, [("Reconstruction loss", ["train/loss", "val/loss"])])
            verdict = [
                f"This network was pre-trained without labels; the page shows the {_describe_iterate(opened)}.",
                "Whether it helps shows in runs that start from it, compared over several seeds.",
            ]
            sections = [
                Section("Reconstructions", render_reconstructions(opened)),
                Section("Training curves", render_training(curves)),
            ]
        elif isinstance(opened.cli.model, SelfSupervisedModule):
            curves = read_curves(opened.folder)
            ranks = ["train/effective_rank", "val/effective_rank"]
            figure = figures.draw_curves(curves or {}, [("Effective rank of the features", ranks)])
            verdict = [
                f"This network was pre-trained without labels; the page shows the {_describe_iterate(opened)}.",
                "Whether it helps shows in runs that start from it, compared over several seeds.",
            ]
            sections = [Section("Training curves", render_training(curves))]
        elif isinstance(opened.cli.model, DefectDetector):
            detector, curves = DetectorReport(opened), read_curves(opened.folder) or {}
            verdict, figure = detector.format_verdict(_describe_iterate(opened)), detector.draw_scores()
            measured = [(title, curves.get(f"test/{name}")) for name, title in _PLACES.items()]
            sections = detector.render_sections([(title, values[-1][1]) for title, values in measured if values])
        else:
            made_by = opened.trained.metadata["made_by"]
            raise InputError(f"run {run!r} ({made_by}) has no classifier: give a run that has one")
        sections.append(Section("Provenance", render_origin(opened)))
    metadata, data = opened.trained.metadata, opened.data
    subtitle = f"{metadata['made_by']} on {metadata['backbone']}, data {data.source.name}"
    subtitle += f", {len(data.splits['labeled']):,} labels" if opened.classify is not None else ""
    write_text(path, render_page(f"Run {_format_run(opened.folder)}", subtitle, verdict, sections, figure))
    return path


def _format_run(folder: Path) -> str:
    """Return the name of a run below `lightning_logs`, or the end of its path where it lies elsewhere."""
    parts = folder.resolve().parts
    begin = len(parts) - parts[::-1].index(LOGS) if LOGS in parts else -2
    return "/".join(parts[begin:])


def _describe_iterate(opened: LoadedRun) -> str:
    return describe_checkpoint(opened.checkpoint, opened.trained.metadata["step"])


def _describe_classifier(
    opened: LoadedRun, path: Path, label_next: int, specificity: float
) -> tuple[list[str], Markup, list[Section]]:
    """Return the sentences of the verdict, the figure beside them, and the sections."""
    # Asked before the evaluation, which takes a while: the run may end meanwhile.
    is_unfinished = is_training(opened.folder)
    evaluation, curves = Evaluation(opened), read_curves(opened.folder)
    unlabeled = evaluation.predict_unlabeled()
    parts = _PARTS[evaluation.task.target]
    known = read_temperature(opened.checkpoint)
    confidence, calibration = render_calibration(evaluation.judged, evaluation.validation, known, parts)
    results, caveats = parts.format_verdict(evaluation, _describe_iterate(opened))
    caveats += _list_caveats(opened, is_unfinished)
    sections = [
        Section("Results by class", parts.render_classes(evaluation)),
        Section("Calibration", calibration),
        Section("Training curves", render_training(curves)),
        Section("Health of the pseudo-labels", render_health(curves)),
        Section("Worst mistakes", render_mistakes(evaluation)),
        Section(*render_explanations(evaluation)),
        Section("Map of the features", _render_map(evaluation, unlabeled)),
        Section("What to label next", render_label_next(evaluation, unlabeled, path, label_next)),
    ]
    if evaluation.task.target == "class" and (table := render_sensitivity(evaluation, specificity)):
        sections.insert(1, Section(f"Sensitivity at a specificity of {specificity:.0%}", table))
    return [*results, confidence, *caveats], parts.draw_lead_figure(evaluation), sections


def _list_caveats(opened: LoadedRun, is_unfinished: bool) -> list[str]:
    """Return sentences with what the run itself says against its results."""
    leaks = map(str, read_leaks(RunRecord(opened.folder).chain[-1]))
    caveats = [f"{leak[:1].upper()}{leak[1:]}." for leak in leaks]
    return [*caveats, *["The run is still training: these are not its final results."][: int(is_unfinished)]]


def _render_map(evaluation: Evaluation, unlabeled: Predictions | None) -> Markup:
    labeled, others = evaluation.labeled, evaluation.judged if unlabeled is None else unlabeled
    seed = evaluation.data.request.seed
    first, second = (sample_positions(len(split.ids), _MAX_MAPPED, seed) for split in (labeled, others))
    x = torch.cat([labeled.features[first], others.features[second]])
    # The data may know labels of unlabeled examples, which are hidden from training and from the reader of this page.
    parts = _PARTS[evaluation.task.target]
    given = (others.labels if unlabeled is None else others.predicted)[second]
    classes, names = parts.color_examples(evaluation, given)
    labels, _ = parts.color_examples(evaluation, labeled.labels[first])
    plural = evaluation.data.input_spec.plural
    title = parts.COLOR_TITLE
    kind, by = (format_split(others.name), title) if unlabeled is None else ("unlabeled", f"predicted {title}")
    by = by.replace("predicted the rarest of their", "the rarest of their predicted")
    note = (
        f"Large and ringed: {len(first):,} labeled {plural} by {title}. Small: {len(second):,} {kind} {plural} by {by}."
    )

    def render_map(coordinates: Tensor, title: str) -> Markup:
        known, rest = coordinates[: len(first)], coordinates[len(first) :]
        return figures.draw_feature_map(known, labels, rest, classes, names, title)

    coordinates, share = project_pca(x)
    maps = [render_map(coordinates, f"PCA: {float(share[0]):.0%} and {float(share[1]):.0%} of the variance")]
    neighborhoods = project_umap(x)
    if neighborhoods is not None:
        maps.append(render_map(neighborhoods, "UMAP, which keeps neighbors together"))
    return render_note(note) + render_columns(maps, "row")
