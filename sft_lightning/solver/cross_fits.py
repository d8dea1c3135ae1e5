"""Held-out probabilities of classifiers that take no gradient steps, fitted without each fold in turn."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers import Classifier, LogisticRegression
from sft_lightning.classifiers.base import count_classes, count_sets
from sft_lightning.classifiers.co_trained_regression import find_pool_neighbors, fit_targets, make_targets
from sft_lightning.classifiers.label_spreading import (
    choose_neighbors,
    count_effective_classes,
    normalize_graph,
    spread_labels,
    spread_sets,
)
from sft_lightning.classifiers.logistic_regression import make_logistic_regression
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.smoothed_regression import NEIGHBORS as SMOOTHING_NEIGHBORS, multiply
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.space import Space


def list_folds(source: LabeledSource) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each division, and which labeled examples each of its folds holds out, bool, (N,)."""
    for number, division in enumerate(source.divisions):
        for fold in range(int(division.max()) + 1):
            yield number, torch.from_numpy(division == fold)


def cross_fit_classifier(x: Tensor, source: LabeledSource, make: Callable[[], Classifier]) -> Tensor:
    """Fit a classifier to the labels of the other folds alone.

    Args:
        x: Vectors of the labeled examples, (N, F).
        source: Source.
        make: Function that makes the classifier.

    Returns:
        Probabilities, (R, N, C), as of the other functions here; NaN for examples in no fold.
    """
    probabilities = torch.full((len(source.divisions), len(x), source.data.num_classes), float("nan"))
    for number, held in list_folds(source):
        classifier = make().fit(x[~held], source.targets[~held], num_classes=source.data.num_classes)
        probabilities[number, held] = classifier.predict_proba(x[held])
    return probabilities


def cross_fit_spreading(space: Space, source: LabeledSource) -> Tensor:
    """Spread the labels of the other folds over one graph, whose search for neighbors is most of the work.

    A held-out example gets the mean of its neighbors, without its own value in the graph: as the delivered model
    classifies new examples. Values in the graph would be right about a point more often.

    Args:
        space: Vectors of all examples.
        source: Source.
    """
    every = torch.cat([space.labeled, space.pool])
    z = F.normalize(WhitenedPCA(space.components).fit(every.split(4096)).transform(every), dim=1)
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


def cross_fit_smoothing(space: Space, source: LabeledSource) -> Tensor:
    """Smooth logistic regression over neighbors, among which a held-out example has no label and is not its own.

    Args:
        space: Vectors of all examples.
        source: Source.
    """
    every = torch.cat([space.labeled, space.pool])
    z, count = F.normalize(every, dim=1), len(space.labeled)
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
        votes[:count][~held] = (known if linear.has_sets else F.one_hot(known, classes)).float()
        own, neighbors = linear.predict_proba(space.labeled[held]), votes[nearest[held]].mean(1)
        probabilities[number, held] = multiply(own, neighbors, linear)
    return probabilities


def cross_fit_co_training(space: Space, source: LabeledSource) -> Tensor:
    """Co-train on the labels of the other folds; a held-out example is a neighbor without its label, and not learned.

    All divisions share the search for neighbors.

    Args:
        space: Vectors of all examples.
        source: Source.
    """
    assert space.second is not None
    every, count, classes = torch.cat([space.labeled, space.pool]), len(space.labeled), source.data.num_classes
    nearest = find_pool_neighbors(space.labeled, space.pool)
    probabilities = torch.full((len(source.divisions), count, classes), float("nan"))
    for number, held in list_folds(source):
        x, y = space.labeled[~held], source.targets[~held]
        linear = LogisticRegression().fit(x, y, num_classes=classes)
        votes, known = linear.predict_proba(every), F.one_hot(y, classes).float()
        votes[:count][~held] = known
        other = make_logistic_regression(space.second.has_counts)
        other.fit(space.second.labeled[~held], y, num_classes=classes)
        taught = make_targets(linear, votes, nearest, other.predict_proba(space.second.unlabeled))
        weight, bias = fit_targets(torch.cat([x, space.pool]), torch.cat([known, taught]))
        logits = F.linear(space.labeled[held].float(), weight, bias)
        probabilities[number, held] = logits.softmax(1)
    return probabilities
