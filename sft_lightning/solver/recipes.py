"""Recipes that `solve` compares: how each classifies held-out labels, and how it is trained on all of them."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.classifiers import Classifier, ComplementNaiveBayes, LogisticRegression
from sft_lightning.classifiers.base import count_classes, count_sets
from sft_lightning.classifiers.label_spreading import (
    choose_neighbors,
    count_effective_classes,
    normalize_graph,
    spread_labels,
    spread_sets,
)
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.smoothed_regression import NEIGHBORS as SMOOTHING_NEIGHBORS, multiply
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.cli.logging import silence_logs, silence_third_party
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.data.eval_batches import choose_at_random
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.study.folds import predict_split
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.transfer.vectors import choose_device, stack_vectors

_CHOSEN = "chosen"  # name of a split whose vectors are computed
MAX_GRAPH = 20_000  # examples of a graph, labeled ones first
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


@dataclass
class Space:
    """Vectors of all examples of a source.

    Attributes:
        name: Name for readers, such as `pixels`.
        argv: Options of a model that takes the same features.
        components: Number of whitened principal components of a graph.
        backbone: Network, or None for pixels.
        saw_pool: Whether the network has learned from the unlabeled examples.
        is_large: Whether the network is one of a library.
        is_random: Whether the network has random weights, which trainings alone start from.
        digest: SHA-256 of the file of weights; empty for published ones and pixels.
        shrinks: Start with its size where trainings may see smaller images; None where they may not.
        has_counts: Whether the vectors are counts or weights of what the inputs consist of, such as words.
        source: Source as the network sees it, after `read`.
        labeled: Vectors of the labeled examples, (N, F).
        pool: Vectors of unlabeled examples, (M, F).
        pool_positions: Their positions in the unlabeled split, int64, (M,).
    """

    name: str
    argv: tuple[str, ...]
    components: int
    backbone: Encoder | None = None
    saw_pool: bool = False
    is_large: bool = False
    digest: str = ""
    shrinks: Candidate | None = None
    is_random: bool = False
    has_counts: bool = False
    source: LabeledSource | None = None
    labeled: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pool: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pool_positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def is_network(self) -> bool:
        """Whether a network gives the vectors, which can be trained further."""
        return self.backbone is not None and not self.has_counts

    def read(self, source: LabeledSource) -> None:
        """Compute the vectors, of at most 20,000 examples.

        Args:
            source: Source whose examples to read, as the network sees them.
        """
        self.source, data = source, source.data
        count, most = len(source.labels), max(MAX_GRAPH, len(source.labels))
        device = torch.device("cpu") if self.backbone is None else choose_device()
        if self.backbone is not None:
            self.backbone.to(device)
            self.backbone.fit_inputs(batch.x for batch in data.training_batches(most, device))
        unlabeled = data.splits["unlabeled"]
        position = {index: i for i, index in enumerate(unlabeled.indices)}
        chosen = choose_at_random(unlabeled, most - count, data.request.seed)
        self.labeled, _ = self._compute(data.splits["labeled"], data, device)
        self.pool, at = self._compute(chosen, data, device)
        self.pool_positions = torch.tensor([position[chosen.indices[i]] for i in at.tolist()], dtype=torch.int64)

    def _compute(self, split: Split, data: FewLabelDataModule, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the vectors of a split, (N, F), and their positions in it, (N,); features are kept on the disk."""
        if not len(split):
            return torch.empty(0, self.labeled.shape[1]), torch.empty(0, dtype=torch.int64)
        data.splits[_CHOSEN] = split
        try:
            if self.is_network and self.backbone is not None:
                made = features(self.backbone, data, _CHOSEN)
                if made is not None:
                    return made.float(), torch.arange(len(made))
            x, _, at = stack_vectors(data.batches_of(_CHOSEN, device), data, self.backbone)
        finally:
            del data.splits[_CHOSEN]
        return x, at


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
            cross_fit=lambda source: _cross_fit_classifier(space.labeled, source, make),
        )  # fmt: skip

    make = partial(make_logistic_regression, space)
    recipes = [recipe("logistic regression", make)]
    if space.has_counts:
        settings = "--model.classifier.strength=10", "--model.classifier.standardize=false"
        recipes = [recipe("logistic regression", make, *settings), recipe("naive Bayes", ComplementNaiveBayes)]
    if source.pool_size:
        graph = ("--model.classifier=LabelSpreading", f"--model.whiten={space.components}")
        argv = (*base, *graph, f"--model.max_examples={MAX_GRAPH}")
        recipes.append(
            Recipe(f"label spreading on {space.name}", True, argv, cross_fit=lambda source: _spread(space, source))
        )
    if source.pool_size and space.backbone is not None and not space.has_counts:  # pixels and words lie too far apart
        argv = (*base, "--model.classifier=SmoothedLogisticRegression", f"--model.max_examples={MAX_GRAPH}")
        name = f"smoothed logistic regression on {space.name}"
        recipes.append(Recipe(name, True, argv, cross_fit=lambda source: _smooth(space, source)))
    return recipes


def make_logistic_regression(space: Space) -> LogisticRegression:
    """Return logistic regression as it suits the vectors of a space.

    Args:
        space: Vectors to learn from.
    """
    return LogisticRegression(strength=10, standardize=False) if space.has_counts else LogisticRegression()


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


def list_folds(source: LabeledSource) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each division, and which labeled examples each of its folds holds out, bool, (N,)."""
    for number, division in enumerate(source.divisions):
        for fold in range(int(division.max()) + 1):
            yield number, torch.from_numpy(division == fold)


def _cross_fit_classifier(x: Tensor, source: LabeledSource, make: Callable[[], Classifier]) -> Tensor:
    probabilities = torch.full((len(source.divisions), len(x), source.data.num_classes), float("nan"))
    for number, held in list_folds(source):
        classifier = make().fit(x[~held], source.targets[~held], num_classes=source.data.num_classes)
        probabilities[number, held] = classifier.predict_proba(x[held])
    return probabilities


def _spread(space: Space, source: LabeledSource) -> Tensor:
    """Spread the labels of the other folds over one graph, whose search for neighbors is most of the work.

    A held-out example gets the mean of its neighbors, without its own value in the graph: as the delivered model
    classifies new examples. Values in the graph would be right about a point more often.
    """
    every = torch.cat([space.labeled, space.pool])
    z = torch.nn.functional.normalize(WhitenedPCA(space.components).fit(every.split(4096)).transform(every), dim=1)
    has_sets = source.targets.ndim == 2
    counts = (count_sets if has_sets else count_classes)(source.targets, source.data.num_classes)
    neighbors = choose_neighbors(len(z), count_effective_classes(counts))
    nearest = find_neighbors(z, z, neighbors, exclude_self=True)
    graph = normalize_graph(nearest)
    count, classes = len(space.labeled), source.data.num_classes
    probabilities = torch.full((len(source.divisions), count, classes), float("nan"))
    for number, held in list_folds(source):
        known = (~held).nonzero()[:, 0]
        own = source.targets[known]
        spread = spread_sets(graph, known, own) if has_sets else spread_labels(graph, known, own, classes)
        probabilities[number, held] = spread[nearest[:count][held]].mean(1)
    return probabilities


def _smooth(space: Space, source: LabeledSource) -> Tensor:
    """Smooth logistic regression over neighbors, among which a held-out example has no label and is not its own."""
    every = torch.cat([space.labeled, space.pool])
    z, count = torch.nn.functional.normalize(every, dim=1), len(space.labeled)
    k = max(1, min(SMOOTHING_NEIGHBORS, len(every) // 2))
    nearest = find_neighbors(z[:count], z, min(k + 1, len(every)))
    is_other = nearest != torch.arange(count)[:, None]
    nearest = nearest.gather(1, is_other.long().argsort(dim=1, descending=True, stable=True)[:, :k])
    classes = source.data.num_classes
    probabilities = torch.full((len(source.divisions), count, classes), float("nan"))
    for number, held in list_folds(source):
        known = source.targets[~held]
        linear = LogisticRegression().fit(space.labeled[~held], known, num_classes=classes)
        votes = linear.predict_proba(every)
        votes[:count][~held] = (known if linear.has_sets else torch.nn.functional.one_hot(known, classes)).float()
        own, neighbors = linear.predict_proba(space.labeled[held]), votes[nearest[held]].mean(1)
        probabilities[number, held] = multiply(own, neighbors, linear)
    return probabilities
