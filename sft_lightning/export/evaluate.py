"""Evaluation of a trained network at export: metrics on its own run's examples, and inputs to check a program on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.export.program_form import Given, find_form
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.runs.trained_network import TrainedNetwork
from sft_lightning.tasks.intervals import estimate_interval, has_groups
from sft_lightning.tasks.make_task import make_task, rebuild_head
from sft_lightning.tasks.segmentation_metrics import bootstrap_mean_iou, count_by_example
from sft_lightning.utils.errors import InputError, find_input_error
from sft_lightning.utils.inputs import concatenate_inputs

NUM_COMPARED = 128  # examples that a program is compared on; of more, it would only repeat more of the same
NUM_MAPS = 16  # the same where each example has a logit for each class and pixel
_SPLITS = {"test": "test", "val": "validation", "labeled": "labeled training", "unlabeled": "unlabeled training"}


@dataclass
class ExportEvaluation:
    """Metrics of a network, and inputs for a comparison.

    Attributes:
        kind: Kind of the examples: `test`, `validation`, `labeled training`, `unlabeled training` or `random`.
        inputs: Inputs of a program for a comparison, at most `NUM_COMPARED`; empty where no program is written.
        metrics: Metrics of the classifier by name, on `count` examples of `total`; empty if not measured.
        count: Number of examples with a label.
        total: Number of examples of the split.
        temperature: Divisor of the logits before the probabilities, as in `predict`; 1 if unknown.
        calibrated_on: Number of validation examples that the temperature was fitted on.
        random_reason: Why the inputs are random ones.
        thresholds: Probability from which each class is predicted where examples have several, (C,); empty if unknown.
        interval: 95 % interval of the first metric of a card, where it is not a share of examples.
    """

    kind: str
    inputs: Given
    metrics: dict[str, float] = field(default_factory=dict)
    count: int = 0
    total: int = 0
    temperature: float = 1.0
    calibrated_on: int = 0
    random_reason: str | None = None
    thresholds: Tensor = field(default_factory=lambda: torch.empty(0))
    interval: tuple[float, float] | None = None


def evaluate_export(
    run: str, trained: TrainedNetwork, folder: Path | None, most: int, compared: int = NUM_COMPARED
) -> ExportEvaluation:
    """Evaluate a network on the test split, else on validation, else on training examples; on random ones without data.

    The splits are those of the run's own `split.csv`: splits made anew from data that grew or shrank since could put
    training examples into the test split.

    Args:
        run: Folder of a run, or a checkpoint.
        trained: Network of the run, possibly changed since.
        folder: Folder of the run, if there is one.
        most: Largest number of held-out examples for metrics, and of validation ones for the temperature, sampled with
            the data's seed; 0 for neither.
        compared: Number of inputs to return for a comparison.
    """
    manifest = None if folder is None else folder / MANIFEST
    options = [f"--data.init_args.split_file={manifest}"] if manifest is not None and manifest.is_file() else []
    try:
        with silence_logs():
            return _evaluate_run(LoadedRun(run, *options), trained, most, compared)
    except Exception as error:
        reason = find_input_error(error)  # the data was moved, changed or damaged since
        if reason is None:
            raise
        form = find_form(trained.metadata)
        inputs = form.draw(compared, torch.Generator().manual_seed(0)) if compared and form is not None else {}
        return ExportEvaluation("random", inputs, random_reason=str(reason))


def _evaluate_run(opened: LoadedRun, trained: TrainedNetwork, most: int, compared: int) -> ExportEvaluation:
    data = opened.data
    name = next((n for n in _SPLITS if len(data.splits[n])), None)
    if name is None:
        raise InputError(f"run {opened.name!r} has no example")
    form, inputs = find_form(trained.metadata), Given()
    if compared and form is not None:
        batches = form.collect(data, add_subset(data, name, compared))
        if not batches:
            raise InputError(f"no {_SPLITS[name]} example of run {opened.name!r} can be read")
        inputs = concatenate_inputs(batches)
    evaluation = ExportEvaluation(_SPLITS[name], inputs, total=len(data.splits[name]))
    if not most or not trained.head:
        return evaluation
    if trained.is_dense:
        return _measure_pixels(evaluation, trained, data, "val" if name == "val" else "test", most)
    task = make_task(data.target, len(trained.head["weight"]))
    logits, y, groups = _predict_split(trained, data, "val", most)
    if len(y) and not bool(task.is_right(logits, y).all()):  # where all are right, no temperature fits best
        evaluation.temperature, evaluation.calibrated_on = fit_temperature(logits, y), len(y)
        evaluation.thresholds = task.fit_thresholds(logits / evaluation.temperature, y)
    if name != "val":
        logits, y, groups = _predict_split(trained, data, "test", most)
    if len(y):
        evaluation.count, evaluation.metrics = len(y), task.measure(logits, y)
        if task.target == "class" and has_groups(groups):
            evaluation.interval = estimate_interval(task.is_right(logits, y), groups)
        if evaluation.calibrated_on:
            scaled = logits / evaluation.temperature
            evaluation.metrics |= task.measure_calibrated(scaled, y, evaluation.thresholds)
    return evaluation


@torch.no_grad()
def _measure_pixels(
    evaluation: ExportEvaluation, trained: TrainedNetwork, data: FewLabelDataModule, name: str, most: int
) -> ExportEvaluation:
    """Measure a network of pixels batch by batch, since the maps of all examples would not fit into memory."""
    if not len(data.splits[name]):
        return evaluation
    chosen, num_classes = add_subset(data, name, most), len(trained.head["weight"])
    network, head = trained.network(), rebuild_head(data.target, trained.head)
    metrics: Any = make_task(data.target, num_classes).build_metrics()
    counts, order = list[Tensor](), list[int]()
    for batch in data.batches_of(chosen, torch.device("cpu")):
        logits = head(network(batch.x))
        metrics.update(logits, batch.y)
        counts.append(count_by_example(logits.argmax(1), batch.y, num_classes))
        order += batch.indices.tolist()
    if not counts:
        raise InputError(f"no {_SPLITS[name]} example can be read")
    evaluation.metrics = {metric: float(value) for metric, value in metrics.compute().items()}
    split = data.splits[chosen]
    groups = split.part.groups_of([split.indices[i] for i in order])
    evaluation.count, evaluation.interval = len(order), bootstrap_mean_iou(torch.cat(counts), groups=groups)
    return evaluation


def _predict_split(
    trained: TrainedNetwork, data: FewLabelDataModule, name: str, most: int
) -> tuple[Tensor, Tensor, list[str] | None]:
    """Compute logits (N, K) of the labeled examples of a split; return them with targets, (N, ...), and groups."""
    if not len(data.splits[name]):
        return torch.empty(0, 1), torch.empty(0), None
    chosen = add_subset(data, name, most)
    x = features(trained.network(), data, chosen)
    if x is None:
        raise InputError(f"some {_SPLITS[name]} examples cannot be read")
    split = data.splits[chosen]
    y = split.labels
    logits = F.linear(x, trained.head["weight"], trained.head["bias"])
    groups = split.part.groups_of([split.indices[i] for i in (y >= 0).nonzero()[:, 0].tolist()])
    return logits[y >= 0], data.make_targets(y[y >= 0]), groups
