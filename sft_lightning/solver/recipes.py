"""Recipes that `solve` compares: how each classifies held-out labels, and how it is trained on all of them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.classifiers import Classifier, ComplementNaiveBayes
from sft_lightning.classifiers.logistic_regression import make_logistic_regression
from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.cli.logging import silence_logs, silence_third_party
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.solver.cross_fits import (
    cross_fit_classifier,
    cross_fit_co_training,
    cross_fit_smoothing,
    cross_fit_spreading,
)
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.space import MAX_GRAPH, Space
from sft_lightning.study.folds import predict_split

QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_model_summary=false",
)
_OPTIMIZER = ("--model.optimizer=torch.optim.AdamW", "--model.lr_scheduler=WarmupCosine")
BATCH = 32
_START_RATE, _RANDOM_RATE = 0.0003, 0.002  # learning rates from a start, and from random weights
# Unlabeled examples for each labeled one: of networks pre-trained here, on small inputs, and of others.
_SMALL_RATIO, _LARGE_RATIO = 7, 3


@dataclass(frozen=True)
class Recipe:
    """A way from labels and pool to a classifier.

    Attributes:
        name: Name for readers.
        uses_unlabeled: Whether the unlabeled examples take part.
        argv: Options of `fit`.
        steps: Number of optimizer steps of a training; 0 for classifiers that take none.
        batch: Number of examples of a step.
        cross_fit: Function from the source to the probabilities of the labeled examples, (R, N, C), or of masks to
            their scores, (R, N), each by a classifier that has not seen its fold, in each division; None where `fit`
            is run for each fold of the first.
    """

    name: str
    uses_unlabeled: bool
    argv: tuple[str, ...]
    steps: int = 0
    batch: int = 0
    cross_fit: Callable[[LabeledSource], Tensor] | None = None


def make_classifiers(space: Space, source: LabeledSource) -> list[Recipe]:
    """Return logistic regression, naive Bayes on counts, and what also learns from unlabeled examples, if any.

    Args:
        space: Vectors that were read.
        source: Source.
    """
    base = ("--model=FrozenFeatureClassifier", *space.argv)

    def recipe(name: str, make: Callable[[], Classifier], *settings: str) -> Recipe:
        argv = (*base, f"--model.classifier={make().__class__.__name__}", *settings)
        # Features of a start that saw the pool without labels depend on it, too.
        return Recipe(
            f"{name} on {space.name}", space.saw_pool, argv,
            cross_fit=lambda source: cross_fit_classifier(space.labeled, source, make),
        )  # fmt: skip

    make = partial(make_logistic_regression, space.has_counts)
    recipes = [recipe("logistic regression", make)]
    if space.has_counts:
        settings = "--model.classifier.strength=10", "--model.classifier.standardize=false"
        recipes = [recipe("logistic regression", make, *settings), recipe("naive Bayes", ComplementNaiveBayes)]
    if source.pool_size:
        graph = ("--model.classifier=LabelSpreading", f"--model.whiten={space.components}")
        argv = (*base, *graph, f"--model.max_examples={MAX_GRAPH}")
        name = f"label spreading on {space.name}"
        recipes.append(Recipe(name, True, argv, cross_fit=lambda source: cross_fit_spreading(space, source)))
    if source.pool_size and space.backbone is not None and not space.has_counts:  # pixels and words lie too far apart
        argv = (*base, "--model.classifier=SmoothedLogisticRegression", f"--model.max_examples={MAX_GRAPH}")
        name = f"smoothed logistic regression on {space.name}"
        recipes.append(Recipe(name, True, argv, cross_fit=lambda source: cross_fit_smoothing(space, source)))
    if space.second is not None and source.targets.ndim == 1:
        second = f"--model.classifier.second_view={source.modality.solve.second_view}"
        argv = (*base, "--model.classifier=CoTrainedRegression", second, f"--model.max_examples={MAX_GRAPH}")
        name = f"co-trained regression on {space.name}"
        recipes.append(Recipe(name, True, argv, cross_fit=lambda source: cross_fit_co_training(space, source)))
    return recipes


def make_trainings(space: Space, source: LabeledSource, steps: int) -> list[Recipe]:
    """Return fine-tuning, and a training that also learns from unlabeled examples, if any.

    From a start: linear probing, then fine-tuning (LP-FT, Kumar et al. 2022), whose head starts as logistic regression
    on the features, and label propagation with the targets of a graph, or pseudo-labels in the shares of the labels
    where examples have several classes. From random weights: SoftMatch (Chen et al. 2023).

    Args:
        space: Space of the network to start from.
        source: Source.
        steps: Number of optimizer steps of each training.
    """
    shared = (*space.argv, *_OPTIMIZER, f"--model.optimizer.lr={_RANDOM_RATE if space.is_random else _START_RATE}")
    shared += (f"--data.batch_size={BATCH}", f"--data.steps_per_epoch={steps}", "--trainer.max_epochs=1")
    shared += source.modality.solve.large_view if space.is_large else source.modality.solve.small_view
    shared += () if space.is_random else ("--model.head_start=logistic_regression",)
    argv = ("--model=FineTuneClassifier", *shared)
    recipes = [Recipe(f"fine-tuning from {space.name} ({steps} steps)", space.saw_pool, argv, steps, BATCH)]
    if source.pool_size:
        ratio = _LARGE_RATIO if space.is_large or space.is_random else _SMALL_RATIO
        argv = ("--model=SemiSupervisedModule", "--model.ema_decay=0.99", f"--data.unlabeled_ratio={ratio}", *shared)
        title, strategy = _choose_strategy(space, source)
        name = f"{title} from {space.name} ({steps} steps)"
        recipes.append(Recipe(name, True, (*argv, *strategy), steps, BATCH * (1 + ratio)))
    return recipes


def _choose_strategy(space: Space, source: LabeledSource) -> tuple[str, tuple[str, ...]]:
    """Return the title and the options of the strategy that learns from unlabeled examples."""
    if source.task.has_thresholds:
        return "class-aware pseudo-labels", ("--model.strategy=ClassAwarePseudoLabels",)
    if space.is_random:
        return "SoftMatch", ("--model.strategy=SoftMatch",)
    words = ("--model.strategy=LabelPropagation", f"--model.strategy.max_examples={MAX_GRAPH}")
    return "label propagation", words


class OutOfTimeError(Exception):
    """Raised when the folds of a recipe would take longer than planned."""


def cross_fit(
    recipe: Recipe,
    source: LabeledSource,
    name: str,
    report: Callable[[str], None],
    known: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
    seconds: float = math.inf,
    predict: Callable[[SFTCLI], Tensor] = lambda cli: predict_split(cli.model, cli.datamodule, "test"),
) -> Tensor:
    """Return the predictions of all labeled examples by classifiers that have not seen their fold, (R, N, ...).

    R is the number of divisions into folds, or 1 for trainings. Predictions are probabilities, (R, N, C), by default.

    Args:
        recipe: Recipe to judge.
        source: Source with its folds; examples in no fold get NaN.
        name: Name of the runs below `lightning_logs`.
        report: Function that gets a line of progress.
        known: Predictions of an earlier call, NaN in the folds that it has not come to; None without one.
        keep: Function that gets the predictions after each fold.
        seconds: Time for all folds.
        predict: Function from a training to the predictions of its fold, (K, ...).

    Raises:
        OutOfTimeError: The folds so far show that all would take longer.
    """
    if recipe.cross_fit is not None:
        return recipe.cross_fit(source)
    found = None if known is None else known.clone()
    begin, trained = time.monotonic(), 0
    for fold in range(source.num_folds):
        held = torch.from_numpy(source.folds == fold)
        if found is not None and not bool(found[0, held].isnan().any()):
            continue
        started = time.monotonic()
        cli = train(recipe, source, fold, f"{name}/fold_{fold}")
        predicted = predict(cli)
        if found is None:
            found = torch.full((1, len(source.labels), *predicted.shape[1:]), float("nan"))
        found[0, held] = predicted
        trained += 1
        report(f"  {recipe.name}: fold {fold + 1} of {source.num_folds} in {time.monotonic() - started:.0f} s")
        if keep is not None:
            keep(found)
        elapsed, left = time.monotonic() - begin, source.num_folds - fold - 1
        if left and elapsed + left * elapsed / trained > seconds:
            raise OutOfTimeError(f"{elapsed / trained:.0f} s for a fold were too many")
    assert found is not None
    return found


def train(recipe: Recipe, source: LabeledSource, fold: int | None, name: str) -> SFTCLI:
    """Train a recipe, on all labels or without those of a fold.

    Args:
        recipe: Recipe to train.
        source: Source.
        fold: Number of the fold that is left out, or None.
        name: Name of the run below `lightning_logs`.
    """
    return fit([*source.data_argv(fold), *recipe.argv], name)


def fit(argv: list[str], name: str) -> SFTCLI:
    """Run `fit` in this process.

    Args:
        argv: Options.
        name: Name of the run below `lightning_logs`.
    """
    with preserve_process(), silence_logs():
        silence_third_party()
        return command(["fit", *argv, *QUIET, f"--run_name={name}", "--seed_everything=0"])


def get_run(cli: SFTCLI) -> Path:
    """Return the folder of a training."""
    return Path(str(cli.trainer.log_dir))
