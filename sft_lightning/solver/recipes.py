"""Recipes that `solve` compares: how each classifies held-out labels, and how it is trained on all of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.classifiers import Classifier, LogisticRegression
from sft_lightning.classifiers.label_spreading import balance_classes, choose_neighbors, normalize_graph, spread_labels
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.cli.logging import silence_logs, silence_third_party
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.networks.encoder import Encoder
from sft_lightning.solver.labels import LabeledSource, predict_split
from sft_lightning.transfer.vectors import choose_device, stack_vectors

MAX_GRAPH = 20_000  # examples of a graph, labeled ones first
_QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_model_summary=false",
)
_OPTIMIZER = ("--model.optimizer=torch.optim.AdamW", "--model.lr_scheduler=WarmupCosine")
BATCH, UNLABELED_RATIO = 32, 7


@dataclass
class Space:
    """Vectors of all examples of a source.

    Attributes:
        name: Name for readers, such as `pixels`.
        argv: Options of a model that takes the same features.
        components: Number of whitened principal components of a graph.
        backbone: Network, or None for pixels.
        labeled: Vectors of the labeled examples, (N, F).
        pool: Vectors of unlabeled examples, (M, F).
    """

    name: str
    argv: tuple[str, ...]
    components: int
    backbone: Encoder | None = None
    labeled: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pool: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def read(self, source: LabeledSource) -> None:
        """Compute the vectors, of at most 20,000 examples.

        Args:
            source: Source whose examples to read.
        """
        device = torch.device("cpu") if self.backbone is None else choose_device()
        if self.backbone is not None:
            self.backbone.to(device)
        count = len(source.labels)
        x, _, _ = stack_vectors(source.data.training_batches(max(MAX_GRAPH, count), device), source.data, self.backbone)
        self.pool = x[count:]
        self.labeled, _, _ = stack_vectors(source.data.batches_of("labeled", device), source.data, self.backbone)


@dataclass(frozen=True)
class Recipe:
    """A way from labels and pool to a classifier.

    Attributes:
        name: Name for readers.
        uses_unlabeled: Whether the unlabeled examples take part.
        argv: Options of `fit`.
        steps: Number of optimizer steps of a training; 0 for classifiers that take none.
        cross_fit: Function from the source to the probabilities of the labeled examples, each by a classifier that has
            not seen its fold; None where `fit` is run for each fold.
    """

    name: str
    uses_unlabeled: bool
    argv: tuple[str, ...]
    steps: int = 0
    cross_fit: Callable[[LabeledSource], Tensor] | None = None


def make_classifiers(space: Space, source: LabeledSource) -> list[Recipe]:
    """Return logistic regression, and label spreading if there are unlabeled examples.

    Args:
        space: Vectors that were read.
        source: Source.
    """
    base = ("--model=FrozenFeatureClassifier", *space.argv)
    # Features of a start that saw the pool without labels depend on it, too.
    saw_pool = space.name == PRETRAINED
    recipes = [
        Recipe(
            f"logistic regression on {space.name}", saw_pool, (*base, "--model.classifier=LogisticRegression"),
            cross_fit=lambda source: _cross_fit_classifier(space.labeled, source, LogisticRegression),
        )
    ]  # fmt: skip
    if source.pool_size:
        graph = ("--model.classifier=LabelSpreading", "--model.classifier.balance=labeled")
        argv = (*base, f"--model.whiten={space.components}", f"--model.max_examples={MAX_GRAPH}", *graph)
        recipes.append(
            Recipe(f"label spreading on {space.name}", True, argv, cross_fit=lambda source: _spread(space, source))
        )
    return recipes


PRETRAINED = "features learned from your images"


def make_trainings(space: Space, source: LabeledSource, steps: int) -> list[Recipe]:
    """Return fine-tuning, and learning from a graph's targets if there are unlabeled examples.

    Args:
        space: Space of the network to start from.
        source: Source.
        steps: Number of optimizer steps of each training.
    """
    views = ("--data.weak_view.crop_padding=2", f"--data.batch_size={BATCH}", f"--data.steps_per_epoch={steps}")
    shared = (*space.argv, "--model.head_start=logistic_regression", *_OPTIMIZER, "--model.optimizer.lr=0.0003")
    shared = (*shared, *views, "--trainer.max_epochs=1")
    saw_pool = space.name == PRETRAINED
    recipes = [Recipe(f"fine-tuning from {space.name}", saw_pool, ("--model=FineTuneClassifier", *shared), steps)]
    if source.pool_size:
        argv = ("--model=SemiSupervisedModule", "--model.strategy=LabelPropagation", "--model.ema_decay=0.99", *shared)
        argv = (*argv, f"--model.strategy.max_examples={MAX_GRAPH}", f"--data.unlabeled_ratio={UNLABELED_RATIO}")
        recipes.append(Recipe(f"label propagation from {space.name}", True, argv, steps))
    return recipes


def cross_fit(recipe: Recipe, source: LabeledSource, name: str, report: Callable[[str], None]) -> Tensor:
    """Return the probabilities of all labeled examples by classifiers that have not seen their fold, (N, C).

    Args:
        recipe: Recipe to judge.
        source: Source with its folds; examples in no fold get NaN.
        name: Name of the runs below `lightning_logs`.
        report: Function that gets a line of progress.
    """
    if recipe.cross_fit is not None:
        return recipe.cross_fit(source)
    probabilities = torch.full((len(source.labels), source.data.num_classes), float("nan"))
    for fold in range(source.num_folds):
        begin = time.monotonic()
        cli = train(recipe, source, fold, f"{name}/fold_{fold}")
        held = torch.from_numpy(source.folds == fold)
        probabilities[held] = predict_split(cli.model, cli.datamodule, "test")
        report(f"  {recipe.name}: fold {fold + 1} of {source.num_folds} in {time.monotonic() - begin:.0f} s")
    return probabilities


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
        return command(["fit", *argv, *_QUIET, f"--run_name={name}", "--seed_everything=0"])


def get_run(cli: SFTCLI) -> Path:
    """Return the folder of a training."""
    return Path(str(cli.trainer.log_dir))


def _cross_fit_classifier(x: Tensor, source: LabeledSource, make: Callable[[], Classifier]) -> Tensor:
    probabilities = torch.full((len(x), source.data.num_classes), float("nan"))
    folds = torch.from_numpy(source.folds)
    for fold in range(source.num_folds):
        known, held = folds != fold, folds == fold
        classifier = make().fit(x[known], source.labels[known], num_classes=source.data.num_classes)
        probabilities[held] = classifier.predict_proba(x[held])
    return probabilities


def _spread(space: Space, source: LabeledSource) -> Tensor:
    """Spread the labels of the other folds over one graph, whose search for neighbors is most of the work."""
    every = torch.cat([space.labeled, space.pool])
    z = torch.nn.functional.normalize(WhitenedPCA(space.components).fit(every.split(4096)).transform(every), dim=1)
    neighbors = choose_neighbors(len(z), source.data.num_classes)
    graph = normalize_graph(find_neighbors(z, z, neighbors, exclude_self=True))
    count, classes = len(space.labeled), source.data.num_classes
    probabilities, folds = torch.full((count, classes), float("nan")), torch.from_numpy(source.folds)
    for fold in range(source.num_folds):
        known = (folds != fold).nonzero()[:, 0]
        spread = spread_labels(graph, known, source.labels[known], classes)
        shares = source.labels[known].bincount(minlength=classes) / len(known)
        others = torch.ones(len(z), dtype=torch.bool)
        others[known] = False
        spread[others] = balance_classes(spread[others], shares)
        probabilities[folds == fold] = spread[:count][folds == fold]
    return probabilities
