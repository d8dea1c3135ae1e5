"""Divide the labels of each draw into folds, one of which is the test of a training, and predict held-out examples."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_lightning.cli.lightning_cli import run as command
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.class_folds import find_unjudged, make_folds
from sft_lightning.data.copies import group_copies
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.set_folds import find_unjudged_classes, make_set_folds
from sft_lightning.data.splits import Split, leave_out_groups
from sft_lightning.study.inputs import SettingsCLI
from sft_lightning.tasks.base import Task
from sft_lightning.utils.errors import InputError, find_input_error


@dataclass(frozen=True)
class Draw:
    """Labels that the seed of a study draws, divided into folds.

    Attributes:
        ids: Names of the labeled examples, (N,).
        folds: Fold of each, int64, (N,); -1 for one that is always learned from.
        groups: Group of each, such as a patient; None where each stands alone.
        paths: `split.csv` of each fold.
        unjudged: Names of the classes of which no example is held out.
    """

    ids: Sequence[str]
    folds: np.ndarray
    groups: list[str] | None
    paths: list[Path]
    unjudged: list[str]

    def digest(self, fold: int) -> str:
        """Return the SHA-256 of which examples a fold holds out and which it learns from.

        Args:
            fold: Number of the fold.
        """
        return hashlib.sha256(repr((fold, list(self.ids), self.folds.tolist())).encode()).hexdigest()


Draws = Mapping[tuple[int, int], Draw]  # by budget and seed


def draw_folds(argv: Sequence[str], seed: int, folds: int, folder: Path) -> Draw:
    """Draw labels, divide them into folds with all examples of a group in one, and write the split of each.

    Args:
        argv: Arguments of a `fit` with the data, its seed and the number of labels.
        seed: Seed of the folds.
        folds: Number of folds.
        folder: Folder of the split files.

    Raises:
        InputError: The source holds examples out already, or a class has too few labels or groups.
    """
    data = _open_data(argv)
    source, labeled = data.source.name, data.splits["labeled"]
    if len(data.splits["test"]):
        raise InputError(
            f"folds is {folds}, but source {source!r} has a test split of {len(data.splits['test']):,} examples, "
            "which judges methods better: leave folds out"
        )
    if data.target == "boxes":
        raise InputError(
            f"folds is {folds}, and the average precision of boxes is not a mean over examples, so that folds "
            "cannot be pooled: give the data a test split or test_size, and leave folds out"
        )
    labels = labeled.labels.numpy()
    groups = group_copies(labeled)
    memberships = data.labeled_memberships()
    if memberships is not None:
        targets = memberships.numpy()
        made = make_set_folds(targets, groups, folds, seed)
        unjudged = [data.class_names[k] for k in find_unjudged_classes(targets, made[0], groups)]
        paths = _write_folds(data, folder, made[0], folds)
        return Draw(labeled.ids, made[0], groups, paths, unjudged)
    made = make_folds(labels, groups, folds, 1, seed, data.class_names)
    allowed = int(made.max()) + 1
    if allowed < folds:
        counts = {name: int(n) for name, n in zip(data.class_names, data.labeled_counts(), strict=True) if n}
        rarest = min(counts, key=lambda name: counts[name])
        among = "" if groups is None else ", and copies and all examples of a group are in one fold"
        raise InputError(
            f"folds is {folds}, but of {len(labels)} labels with seed {seed} class {rarest!r} has "
            f"{counts[rarest]}{among}: set folds to {allowed}, or give more labels"
        )
    paths = _write_folds(data, folder, made[0], folds)
    unjudged = [data.class_names[label] for label in find_unjudged(labels, made)]
    return Draw(labeled.ids, made[0], groups, paths, unjudged)


def _write_folds(data: FewLabelDataModule, folder: Path, fold: np.ndarray, folds: int) -> list[Path]:
    paths = [folder / f"fold_{k}.csv" for k in range(folds)]
    for k, path in enumerate(paths):
        write_fold(data, path, fold == k)
    return paths


def _open_data(argv: Sequence[str]) -> FewLabelDataModule:
    """Open the data of a `fit` without a test or validation split of its own making."""
    with silence_logs():
        cli = command(["fit", *argv], SettingsCLI)
        assert isinstance(cli, SettingsCLI)
        try:
            data = cli.make_data()
        except Exception as error:
            raise find_input_error(error) or error from error
        if not isinstance(data, FewLabelDataModule):
            raise InputError(f"folds needs a FewLabelDataModule, and data is {type(data).__name__}: leave folds out")
        if data.split_file is not None:
            raise InputError(f"folds makes splits, and split_file {data.split_file!r} has one: leave one of them out")
        data.request = replace(data.request, val_size=0.0, test_size=0.0)
        data.setup("fit")
    return data


def write_fold(data: FewLabelDataModule, path: Path, held_out: np.ndarray | None) -> None:
    """Write a `split.csv` without validation split, in which some of the labeled examples are those to test on.

    Unlabeled examples of their groups are left out.

    Args:
        data: Data module after its setup.
        path: Path of the file.
        held_out: Whether each labeled example is tested on, bool, (N,); None for the source's own test split.
    """
    labeled = data.splits["labeled"]
    splits = {**data.splits, "val": Split(labeled.part, [])}
    if held_out is not None:
        splits["labeled"], splits["test"] = (
            Split(labeled.part, [labeled.indices[i] for i in np.flatnonzero(rows).tolist()])
            for rows in (~held_out, held_out)
        )
        splits["unlabeled"] = leave_out_groups(
            splits["unlabeled"], {"test": splits["test"]}, replace(data.request, findings=[])
        )
    data.write_splits(path, splits)


def predict_split(model: Any, data: FewLabelDataModule, name: str, temperature: float = 1.0) -> Tensor:
    """Return the class probabilities of a split in its order, float32, (N, C); NaN for unreadable examples.

    Args:
        model: Classifier with `forward` to logits, and the `task` that says what they mean.
        data: Data module after its setup.
        name: Name of the split.
        temperature: Divisor of the logits.
    """
    probabilities: Tensor = model.task.probabilities(compute_logits(model, data, name) / temperature)
    return probabilities


def compute_logits(model: torch.nn.Module, data: FewLabelDataModule, name: str) -> Tensor:
    """Return the logits of a split in its order, float32, (N, C); NaN for unreadable examples.

    Args:
        model: Classifier with `forward` to logits.
        data: Data module after its setup.
        name: Name of the split.
    """
    logits = torch.full((len(data.splits[name]), data.num_classes), float("nan"))
    for indices, outputs, _ in _iterate_outputs(model, data, name):
        logits[indices] = outputs
    return logits


def score_examples(model: torch.nn.Module, data: FewLabelDataModule, task: Task, name: str) -> Tensor:
    """Return how well a model predicts each example of a split in its order, 0 to 1, (N,); 0 for unreadable ones.

    Args:
        model: Model with `forward` to outputs.
        data: Data module after its setup.
        task: Kind of target.
        name: Name of the split.
    """
    scores = torch.zeros(len(data.splits[name]))
    for indices, outputs, targets in _iterate_outputs(model, data, name):
        scores[indices] = task.example_scores(outputs, targets).float()
    return scores


@torch.no_grad()
def _iterate_outputs(
    model: torch.nn.Module, data: FewLabelDataModule, name: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield positions, outputs and targets of the batches of a split, on the CPU."""
    model.eval()
    for batch in data.batches_of(name, next(model.parameters(), torch.empty(0)).device):
        yield batch.indices.cpu(), model(batch.x).float().cpu(), batch.y.cpu()
