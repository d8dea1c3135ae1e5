"""Rank starts (backbones by name, files, earlier runs) for a set of labels without training any of them."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

# So that a config can name them without their module.
from sft_lightning import (
    AnomalyDataModule as AnomalyDataModule,
    AudioDataModule as AudioDataModule,
    DetectionDataModule as DetectionDataModule,
    ImageDataModule as ImageDataModule,
    SegmentationDataModule as SegmentationDataModule,
    TextDataModule as TextDataModule,
)
from sft_lightning.data.class_names import format_class_names
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.runs.paths import LOGS
from sft_lightning.transfer.candidates import Candidate, count_known_labels, load_candidate, resolve_candidates
from sft_lightning.transfer.folds import FoldPlan, plan_folds
from sft_lightning.transfer.mask_vectors import list_ranked_classes, sample_vectors
from sft_lightning.transfer.scores import (
    cross_validate,
    h_score,
    leep,
    logme,
    nce,
    regularized_h_score,
    split_into_folds,
)
from sft_lightning.utils.atomic import open_atomic, write_text
from sft_lightning.utils.errors import InputError, find_input_error
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.spreadsheet import format_csv
from sft_lightning.utils.tables import align_columns

Criterion = Literal["linear", "knn", "logme", "h_score", "regularized_h_score", "leep", "nce"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
_OF_ONE_CLASS = ("leep", "nce")
CROSS_VALIDATED: tuple[Literal["linear"], Literal["knn"]] = ("linear", "knn")
DataFactory = Callable[[], FewLabelDataModule]


@dataclass
class CandidateScores:
    """Scores of a candidate.

    Attributes:
        candidate: Start that was scored.
        backbone: Name of the backbone.
        num_features: Number of features F.
        input_spec: Inputs it was compared on; None where it failed.
        size_note: Why their size is not that of the data's; empty if it is.
        labels: Number of labels it was scored on.
        distinct: Number of labels without repeated copies of an example, on which scores without cross-validation rest.
        fold_notes: Phrases about copies and folds.
        scores: Scores by criterion; higher is better. Criteria that need the source's classes are missing without them.
        errors: Standard errors of the cross-validated scores.
        seconds: Duration in seconds.
        known_labels: Number of these labels that its runs have learned from, which makes it look better than it is.
        failed: Why it has no scores; empty if it has.
        has_sets: Whether examples have several classes.
        has_masks: Whether examples have masks, so that labels are those of pixels.
    """

    candidate: Candidate
    backbone: str = ""
    num_features: int = 0
    input_spec: InputSpec | None = None
    size_note: str = ""
    labels: int = 0
    distinct: int = 0
    fold_notes: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    known_labels: int = 0
    failed: str = ""
    has_sets: bool = False
    has_masks: bool = False


def rank(
    data: DataFactory,
    candidates: list[str | Candidate],
    folds: int = 5,
    by: Criterion = "logme",
    out: str = f"{LOGS}/rank",
) -> str:
    """Compare starts on the labeled split and write `rank.csv` and `rank.png`.

    Args:
        data: Data with the labels; its other splits are not used. Starts by name see images of its size; files and runs
            do, too, where `image_size` is given and their weights fit it, and otherwise images of their own size.
        candidates: Names (with published weights), files, runs or folders of runs; or a mapping of backbone, weights
            and image_size.
        folds: Number of folds of the cross-validation of `knn` and `linear`; of masks, pixels of one stay together.
        by: Criterion to sort by: `logme`, which predicted the fine-tuned accuracy best where that was measured
            (`scripts/bench/ranking.py`), `linear` and `knn` (cross-validated accuracy of a classifier on the
            features, or F1 of an example that has several classes), `h_score`, `regularized_h_score`, or `leep` and
            `nce`, which need the source's classes, and one class of each example.
        out: Folder of both files.

    Returns:
        The table, best first.

    Raises:
        InputError: The labels are too few, or no candidate can be used.
    """
    results = score_candidates(data, candidates, folds, _print_line, by)
    if all(one.failed for one in results):
        raise InputError(f"none of the {len(results)} candidates can be used; the first: {results[0].failed}")
    ordered = sorted(results, key=lambda one: -one.scores.get(by, -math.inf))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "rank.csv", ordered)
    _plot(folder / "rank.png", [one for one in ordered if not one.failed])
    return f"{format_ranking(ordered, by)}\nWritten: {folder / 'rank.csv'} and {folder / 'rank.png'}"


def _print_line(text: str) -> None:
    sys.stderr.write(text + "\n")


def score_candidates(
    data: DataFactory,
    candidates: Sequence[str | Candidate],
    folds: int,
    say: Callable[[str], None] = lambda text: None,
    by: Criterion = "logme",
) -> list[CandidateScores]:
    """Score each candidate, in the given order.

    Args:
        data: Factory of the data; called with `image_size` and `channels` for candidates that need other images.
        candidates: Starts as in `rank`.
        folds: Number of folds of the cross-validation.
        say: Function that takes a progress line for each candidate.
        by: Criterion that must be among the scores where a candidate has what it takes.

    Raises:
        InputError: The labels are too few, a folder holds no run, or the labels have no such criterion.
    """
    starts = [start for given in candidates for start in resolve_candidates(given)]
    if not starts:
        raise InputError("candidates is empty: give names of backbones, files, runs or a folder of runs")
    views = _DataBySpec(data)
    default = views.default
    if default.target != "class" and by in _OF_ONE_CLASS:
        others = ", ".join(name for name in CRITERIA if name not in _OF_ONE_CLASS)
        have = "masks" if default.target == "mask" else "several"
        raise InputError(f"by is {by!r}, which takes examples of one class each, and these have {have}: give {others}")
    plan = _plan_folds(default, folds)
    results = []
    for k, start in enumerate(starts):
        began = time.perf_counter()
        try:
            one = _score_candidate(start, views, plan)
        except Exception as error:  # the others can still be compared
            mistake = find_input_error(error)
            if mistake is None:
                raise
            one = CandidateScores(start, failed=str(mistake))
        one.seconds = time.perf_counter() - began
        results.append(one)
        say(f"{k + 1}/{len(starts)}  {start}  {one.failed or f'{one.seconds:.1f} s'}")
    return results


def _plan_folds(data: FewLabelDataModule, folds: int) -> FoldPlan:
    """Plan the folds of the cross-validation, or say why there can be none."""
    labeled = data.splits["labeled"]
    plan = plan_folds(data, labeled, folds)
    if data.target != "mask":
        targets = data.make_targets(labeled.labels)
        split_into_folds(targets, plan.folds, data.request.seed, plan.groups, data.class_names)
        return plan
    kept = list_ranked_classes(data, plan)
    if rare := [name for k, name in enumerate(data.class_names) if k not in kept]:
        plan.notes.append(f"without {format_class_names(rare)}, with pixels in fewer masks than there are folds")
    return plan


class _DataBySpec:
    """Labeled examples as the inputs that candidates need."""

    def __init__(self, data: DataFactory) -> None:
        self._make: Callable[..., FewLabelDataModule] = data
        self.default = self._set_up()
        self._by_spec = {self.default.input_spec: self.default}

    def _set_up(self, **changed: Any) -> FewLabelDataModule:
        made = self._make(**changed)
        if made.target != "mask":
            made.require_classes("rank")
        made.setup("validate")
        return made

    def of(self, spec: InputSpec) -> FewLabelDataModule:
        if spec not in self._by_spec:
            settings = self.default.settings_for(spec)
            if not settings:
                raise InputError(f"it takes {spec}, and the data gives {self.default.input_spec}: leave it out")
            self._by_spec[spec] = self._set_up(**settings)
        return self._by_spec[spec]


def _score_candidate(start: Candidate, views: _DataBySpec, plan: FoldPlan) -> CandidateScores:
    torch.manual_seed(views.default.request.seed)  # of random starts
    has_masks = views.default.target == "mask"
    backbone, head = load_candidate(start, views.default.input_spec, views.default.given_size, has_masks)
    data = views.of(backbone.input_spec)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    read = sample_vectors if has_masks else _read_vectors
    x, y, groups, distinct = read(backbone.to(device), data, plan)
    classes = data.num_classes
    errors: dict[str, float] = {}
    scores: dict[str, float] = {}
    for kind in CROSS_VALIDATED:
        scores[kind], errors[kind] = cross_validate(x, y, plan.folds, data.request.seed, groups, kind=kind)
    count = len(y)
    x, y = x[distinct], y[distinct]  # the other scores have nothing that would keep copies apart
    scores |= {
        "logme": logme(x, y, classes),
        "h_score": h_score(x, y),
        "regularized_h_score": regularized_h_score(x, y),
    }
    if head and data.target == "class":
        probabilities = F.linear(x, head["weight"].float(), head["bias"].float()).softmax(1)
        scores["leep"] = leep(probabilities, y, classes)
        scores["nce"] = nce(probabilities.argmax(1), y)
    known = 0 if start.weights in ("none", "default") else count_known_labels(start.weights, data)
    return CandidateScores(
        start,
        backbone.name,
        backbone.num_features,
        input_spec=backbone.input_spec,
        size_note=_explain_size(start, backbone.input_spec, views.default),
        labels=count,
        distinct=len(y),
        has_sets=data.target == "class_set",
        has_masks=has_masks,
        fold_notes=plan.notes,
        scores=scores,
        errors=errors,
        known_labels=known,
    )


def _read_vectors(
    backbone: Encoder, data: FewLabelDataModule, plan: FoldPlan
) -> tuple[Tensor, Tensor, list[str] | None, list[int]]:
    """Return the features of the labeled examples, their targets, their groups, and the positions without copies."""
    x = features(backbone, data, "labeled")
    if x is None:
        raise InputError(f"source {data.source.name!r} has labeled examples that cannot be read: repair or remove them")
    return x.float(), data.make_targets(data.splits["labeled"].labels), plan.groups, plan.distinct


def _explain_size(start: Candidate, spec: InputSpec, data: FewLabelDataModule) -> str:
    """Explain why a candidate is compared on images of another size than that of the data, if it is."""
    size, common = spec.shape[-1], data.input_spec.shape[-1]
    if size == common:
        return ""
    if start.image_size is not None:
        why = "as its image_size says"
    elif data.given_size is None:
        why = "the size of its training: set data.init_args.image_size to compare all at one size"
    else:
        why = f"the size of its training, since its weights do not fit {common} px"
    return f"{start} is compared on images of {size} px, {why}"


# --- what is shown

_TITLES = {
    "linear": "linear probe",
    "knn": "k-NN",
    "logme": "LogME",
    "h_score": "H-score",
    "regularized_h_score": "regularized H-score",
    "leep": "LEEP",
    "nce": "NCE",
}


def format_ranking(ordered: Sequence[CandidateScores], by: Criterion) -> str:
    """Format the ranking as a table, with notes on how to read it.

    Args:
        ordered: Scores in the order to list them.
        by: Criterion they are sorted by.
    """
    lines = [
        ["start", "px", "features", *(_TITLES[name] + (" *" if name == by else "") for name in CRITERIA), "seconds"]
    ]
    for one in ordered:
        if not one.failed:
            cells = [_format_cell(one, name) for name in CRITERIA]
            size = "" if one.input_spec is None else str(one.input_spec.shape[-1])
            lines.append([str(one.candidate), size, str(one.num_features), *cells, f"{one.seconds:.1f}"])
    text = align_columns(lines, "<>")
    has_sets = any(one.has_sets for one in ordered)
    has_masks = any(one.has_masks for one in ordered)
    unit = "F1 of an example" if has_sets else "accuracy of pixels" if has_masks else "accuracy"
    text.append(f"* the order; higher is better for each; {_TITLES['linear']} and {_TITLES['knn']}: {unit} ± s.e.")
    if has_sets:
        text.append(
            f"the other scores are means over classes; {_TITLES['leep']} and {_TITLES['nce']} are left out, since they "
            "take examples of one class each"
        )
    if has_masks:
        count = max(one.labels for one in ordered)
        text.append(
            f"of {count:,} pixels on maps at a quarter of the sides, of each mask as many of each class; "
            f"{_TITLES['leep']} and {_TITLES['nce']} are left out, since they take examples of one class each"
        )
    if any(one.num_features >= one.distinct for one in ordered if not one.failed):
        text.append(
            f"{_TITLES['h_score']} says nothing where there are no more labels than features; its regularized form does"
        )
    for one in [one for one in ordered if not one.failed][:1]:  # the labels are the same for all
        text += one.fold_notes
        if one.distinct < one.labels:
            text.append(f"all scores but {_TITLES['linear']} and {_TITLES['knn']} count each set of copies once")
    text += [one.size_note for one in ordered if one.size_note]
    text += [
        f"{one.candidate} has learned from {one.known_labels} of these labels: its scores are too good"
        for one in ordered
        if one.known_labels
    ]
    text += [f"left out: {one.candidate}: {one.failed}" for one in ordered if one.failed]
    return "\n".join(text)


def _format_cell(one: CandidateScores, name: str) -> str:
    score, error = one.scores.get(name), one.errors.get(name)
    if score is None:
        return "-"
    return f"{score:.3f}" if error is None else f"{score:.3f} ± {error:.3f}"


def _write_csv(path: Path, ordered: Sequence[CandidateScores]) -> None:
    columns = ["start", "backbone", "num_features", "image_size", *CRITERIA, "linear_error", "knn_error"]
    columns += ["seconds", "seen", "failed"]
    rows: list[list[object]] = [[*columns]]
    for one in ordered:
        figures = [
            *(one.scores.get(name, "") for name in CRITERIA),
            *(one.errors.get(n, "") for n in CROSS_VALIDATED),
        ]
        row: list[object] = [
            one.candidate,
            one.backbone,
            one.num_features,
            0 if one.input_spec is None else one.input_spec.shape[-1],
            *figures,
            round(one.seconds, 3),
            one.known_labels,
            one.failed,
        ]
        rows.append(row)
    write_text(path, format_csv(rows))


def _plot(path: Path, ordered: Sequence[CandidateScores]) -> None:
    """A panel for each criterion, a line for each candidate, the best on top. Points: some scores are negative."""
    from matplotlib.figure import Figure

    shown = [name for name in CRITERIA if any(name in one.scores for one in ordered)]
    figure = Figure(figsize=(3 + 2.2 * len(shown), 1.2 + 0.35 * len(ordered)), layout="constrained", dpi=120)
    panels: Any = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    positions = range(len(ordered))
    for panel, name in zip(panels, shown, strict=True):
        scores = [one.scores.get(name, math.nan) for one in ordered]
        panel.errorbar(scores, positions, xerr=[one.errors.get(name, 0.0) for one in ordered], fmt="o", color="#2f5f8f")
        panel.grid(axis="y", color="#dddddd")
        panel.set_title(_TITLES[name], fontsize=10)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(positions, [str(one.candidate)[-40:] for one in ordered])
    panels[0].invert_yaxis()
    with open_atomic(path) as staged:
        figure.savefig(staged, format="png")
