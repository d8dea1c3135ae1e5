"""The model trained on all labels, its calibrated predictions of the pool, and what to label next."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.logging import silence_logs
from sft_lightning.detection.bootstrap import MatchRecords
from sft_lightning.export.export import ExportFormat, export
from sft_lightning.paradigms.frozen_features import FrozenFeatureClassifier
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.temperature import CrossFittedTemperature, write_temperature
from sft_lightning.selection import kmeans_centers
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.recipes import Recipe, get_run, train
from sft_lightning.solver.scoring import calibrate
from sft_lightning.solver.space import Space
from sft_lightning.study.folds import compute_logits, predict_split
from sft_lightning.tasks.base import Task
from sft_lightning.training.frame_votes import write_votes
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.solution_folder import SUMMARY
from sft_lightning.utils.spreadsheet import format_csv

NEXT = 20  # examples to label next
ONNX = "model.onnx"
EXPORTS: dict[str, ExportFormat] = {"model.safetensors": "safetensors", ONNX: "onnx"}
_WRONG, _SURE = 0.1, 0.8  # probability of its label below, and of another class above which a label is doubtful


@dataclass
class Delivery:
    """What was made of the chosen recipe.

    Attributes:
        run: Folder of the run.
        calibration: Temperature of the probabilities, and thresholds where examples have several classes, fitted to
            held-out predictions of the labels.
        test_scores: Score of each example of the source's own test split, such as whether it is right, (T,), or its
            matched detections; None without one.
        next_labels: Positions of the unlabeled examples to label next.
        doubtful: Positions of the labeled examples whose label is doubtful.
        doubts: What the held-out prediction says of each doubtful label.
        doubtful_shown: How a page shows them; empty where it shows them as they are.
        advice: Sentences about what would help most.
        next_shown: How a page shows the examples to label next; empty where it shows them as they are.
        writes: What `predict` writes of new examples.
        score_threshold: Score from which detections count as objects; 0 where none are detected.
        not_exported: Reason for the lack of an exported file, by its name.
    """

    run: Path
    calibration: CrossFittedTemperature
    test_scores: Tensor | MatchRecords | None = None
    next_labels: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    doubtful_shown: list[Markup] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    next_shown: list[Markup] = field(default_factory=list)
    writes: str = "calibrated probabilities"
    score_threshold: float = 0.0
    not_exported: dict[str, str] = field(default_factory=dict)


def deliver(recipe: Recipe, repeated: Tensor, source: LabeledSource, space: Space, name: str, folder: Path) -> Delivery:
    """Train a recipe on all labels and write predictions, next labels and the exported model.

    Args:
        recipe: Chosen recipe.
        repeated: Probabilities of the labeled examples without their fold in R divisions, (R, N, C); NaN for those
            in no fold.
        source: Source.
        space: Vectors by which the next labels are spread.
        name: Name of the run below `lightning_logs`.
        folder: Folder of the solution.
    """
    data = source.data
    cli = train(recipe, source, None, name)
    model = cli.model
    remove_earlier(folder)
    known = calibrate(repeated, source)
    delivery, thresholds = Delivery(get_run(cli), known), torch.tensor(known.thresholds)
    if known.value != 1 or known.thresholds:
        write_temperature(delivery.run, find_run_checkpoint(str(delivery.run)), known)
    if source.has_test:
        delivery.test_scores = test(model, source, known)
    if source.pool_size:
        probabilities = _predict_pool(model, source, space, known.value)
        outputs = source.task.invert_probabilities(probabilities)
        predicted = data.name_targets(source.task.decide(outputs, thresholds))
        _write_predictions(folder / "predictions.csv", source, probabilities, predicted)
        write_votes(folder / "predictions.csv", data.label_separator or ";" if source.task.has_thresholds else None)
        delivery.next_labels = choose_next(measure_certainty(probabilities, source.task), space)
        ids = data.splits["unlabeled"].ids
        rows: list[list[object]] = [[ids[i], predicted[i]] for i in delivery.next_labels]
        head = ["order", "id", "suggestion"]
        if any(isinstance(one, str) for one in data.show_examples("unlabeled", delivery.next_labels[:1])):
            head.append(data.input_spec.noun)  # a column with the examples themselves
            shown = data.show_examples("unlabeled", delivery.next_labels)
            rows = [[*row, cell] for row, cell in zip(rows, shown, strict=True)]
        numbered = [[order, *row] for order, row in enumerate(rows, 1)]
        write_text(folder / "label_next.csv", format_csv([head, *numbered]))
    held_out = repeated.mean(0)
    _doubt_labels(held_out, source, delivery)
    delivery.advice = _advise(held_out, source, delivery)
    delivery.not_exported = export_all(delivery.run, folder)
    return delivery


def export_all(run: Path, folder: Path) -> dict[str, str]:
    """Export a model in all formats, and return the reason for the lack of each file that cannot be written.

    Args:
        run: Folder of the run.
        folder: Folder of the solution.
    """
    reasons = {}
    for name, language in EXPORTS.items():
        try:
            with silence_logs():
                export(str(run), format=language, out=str(folder / name))
        except InputError as error:
            reasons[name] = str(error).partition(": ")[0]
    return reasons


def _predict_pool(model: nn.Module, source: LabeledSource, space: Space, temperature: float) -> Tensor:
    """Return the class probabilities of the unlabeled examples, (M, C), from their features where those are known."""
    if not isinstance(model, FrozenFeatureClassifier) or not space.is_network or len(space.pool) < source.pool_size:
        return predict_split(model, source.data, "unlabeled", temperature)
    probabilities = torch.empty(source.pool_size, source.data.num_classes)
    with torch.no_grad():
        logits = torch.cat([model.classify(x.to(model.device)).cpu() for x in space.pool.split(4096)])
    probabilities[space.pool_positions] = model.task.probabilities(logits.float() / temperature)
    return probabilities


def remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier call, which may have had another source or no pool, the summary of them first.

    Args:
        folder: Folder of the solution.
    """
    names = (folder / name for name in (SUMMARY, "report.html", "label_next.csv"))
    for path in (*names, *folder.glob("predictions*.*"), *folder.glob("model*.*")):
        path.unlink(missing_ok=True)
    for path in folder.glob("predicted_*"):  # masks, boxes
        shutil.rmtree(path)


def train_on_all(recipe: Recipe, source: LabeledSource, name: str, folder: Path, writes: str) -> tuple[Any, Delivery]:
    """Train a recipe whose outputs are not calibrated on all labels, and remove the files of an earlier call.

    Args:
        recipe: Chosen recipe.
        source: Source as the recipe sees it.
        name: Name of the run below `lightning_logs`.
        folder: Folder of the solution.
        writes: What `predict` writes of new examples.

    Returns:
        The model, and what was made of the recipe so far.
    """
    cli = train(recipe, source, None, name)
    remove_earlier(folder)
    uncalibrated = CrossFittedTemperature(1.0, len(source.labels), ())
    return cli.model.eval(), Delivery(get_run(cli), uncalibrated, writes=writes)


def test(model: nn.Module, source: LabeledSource, calibration: CrossFittedTemperature) -> Tensor:
    """Return the score of each example of the source's own test split, such as whether it is right, (T,).

    Args:
        model: Trained classifier.
        source: Source.
        calibration: Temperature and thresholds of the recipe.
    """
    outputs = compute_logits(model, source.data, "test") / calibration.value
    targets = source.data.make_targets(source.data.splits["test"].labels)
    return source.task.example_scores(outputs, targets, torch.tensor(calibration.thresholds))


def _write_predictions(path: Path, source: LabeledSource, probabilities: Tensor, predicted: Sequence[str]) -> None:
    """Write what is predicted of the unlabeled examples; nothing of unreadable ones, whose probabilities are NaN."""
    columns: dict[str, list[str]] = {"id": source.data.splits["unlabeled"].ids}
    is_known = (~probabilities.isnan().any(1)).tolist()
    columns["predicted"] = [name if known else "" for name, known in zip(predicted, is_known, strict=True)]
    if not source.task.has_thresholds:  # that of a set of classes falls with their number
        columns["confidence"] = [f"{p:.4f}" for p in probabilities.max(1).values.tolist()]
    doubt = source.task.uncertainty(source.task.invert_probabilities(probabilities))
    columns["doubt"] = [f"{d:.4f}" for d in doubt.tolist()]
    for name, column in zip(source.data.class_names, probabilities.T.tolist(), strict=True):
        columns[f"p({name})"] = [f"{p:.4f}" for p in column]
    write_text(path, format_csv([[*columns], *zip(*columns.values(), strict=True)]))


def measure_certainty(probabilities: Tensor, task: Task) -> Tensor:
    """Return the margin between the two most probable classes, or minus the mean entropy of all classes, (M,).

    Args:
        probabilities: Probabilities of examples, (M, C); NaN for unreadable ones, which count as certain.
        task: Kind of target.
    """
    if task.has_thresholds:
        certainty = -task.uncertainty(task.invert_probabilities(probabilities))
    else:
        top = probabilities.topk(2, 1).values
        certainty = top[:, 0] - top[:, 1]
    return certainty.nan_to_num(torch.inf)


def choose_next(certainty: Tensor, space: Space) -> list[int]:
    """Return the positions of the unlabeled examples to label next: typical ones of the more doubtful half.

    They are nearest to the centers of k-means with one cluster for each, among the half of the examples with the
    smaller certainty. With few labels, choosing among the most doubtful ones alone is below random choice
    (`scripts/bench/next_labels.py`).

    Args:
        certainty: Certainty of the predictions of the unlabeled examples, (M,).
        space: Vectors of unlabeled examples.
    """
    margin = certainty[space.pool_positions]
    doubtful = margin.argsort(stable=True)[: max(NEXT, len(margin) // 2)]
    if len(doubtful) > NEXT:
        whitening = WhitenedPCA(space.components).fit([space.pool])
        z = F.normalize(whitening.transform(space.pool[doubtful]), dim=1)
        doubtful = doubtful[kmeans_centers(z, NEXT, 0)]
    positions: list[int] = space.pool_positions[doubtful].tolist()
    return positions


def _doubt_labels(held_out: Tensor, source: LabeledSource, delivery: Delivery) -> None:
    """Keep the labels that held-out predictions contradict; of sets of classes, those that seem to lack one."""
    names, task = source.data.class_names, source.task
    p = held_out.nan_to_num(0)
    if task.has_thresholds:
        lacks = (p > _SURE) & (source.targets == 0)
        delivery.doubtful = lacks.any(1).nonzero()[:, 0].tolist()
        for i in delivery.doubtful:
            found = sorted(lacks[i].nonzero()[:, 0].tolist(), key=lambda k: -float(p[i, k]))
            delivery.doubts.append(f"may also have {', '.join(names[k] for k in found)}")
        return
    confident, other = p.max(1)
    own = p.gather(1, source.labels[:, None])[:, 0]
    wrong = (own < _WRONG) & (confident > _SURE) & (other != source.labels)
    delivery.doubtful = wrong.nonzero()[:, 0].tolist()
    delivery.doubts = [f"looks like {names[k]}" for k in other[wrong].tolist()]


def _measure_recall(
    held_out: Tensor, source: LabeledSource, calibration: CrossFittedTemperature
) -> tuple[Tensor, Tensor]:
    """Return the recall of each class, float64, (C,), 2 where it has too few judged labels, and their numbers, (C,)."""
    judged = torch.from_numpy(source.folds >= 0)
    outputs = source.task.invert_probabilities(held_out[judged]) / calibration.value
    decided, targets = source.task.decide(outputs, torch.tensor(calibration.thresholds)), source.targets[judged]
    if targets.ndim == 1:
        decided, targets = (F.one_hot(one, source.data.num_classes) for one in (decided, targets))
    counts = targets.sum(0)
    recall = (decided * targets).sum(0).double() / counts.clamp_min(1)
    return torch.where(counts < 2, 2.0, recall), counts


def _advise(held_out: Tensor, source: LabeledSource, delivery: Delivery) -> list[str]:
    names, (recall, counts) = source.data.class_names, _measure_recall(held_out, source, delivery.calibration)
    sentences = []
    if float(recall.min()) < 1:
        worst = int(recall.argmin())
        sentences.append(
            f"More labels of {names[worst]} would help most: {recall[worst]:.0%} of its {int(counts[worst])} held-out "
            "labels are recognized."
        )
    if delivery.next_labels:
        sentences.append(
            f"Label the {len(delivery.next_labels)} examples of label_next.csv first, then call solve again."
        )
    if delivery.doubtful:
        why = "may lack a class" if source.task.has_thresholds else "look wrong"
        sentences.append(f"Check {len(delivery.doubtful)} label(s) that {why}; the report shows them.")
    return sentences
