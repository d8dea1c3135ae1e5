"""Divide labeled examples of one class each into stratified folds, several times."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft_lightning.data.set_folds import UNJUDGED
from sft_lightning.utils.errors import InputError, check_min

_SMALL_SHARE = 0.1  # of the examples that may be of classes with fewer groups than folds
_ATTEMPTS = 20

Array = NDArray[Any]


def make_folds(
    labels: ArrayLike,
    groups: Sequence[str] | None = None,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> Array:
    """Divide labeled examples into stratified folds, several times.

    Examples of a group stay in one fold. Each class with two groups or more is in at least two folds, so that every
    model learns from all classes. There are fewer folds where more than a tenth of the examples are of classes with
    fewer groups: models that have lost one of two labels of a class, but none of another, rarely predict the first, and
    these are the ones that judge it.

    A class with a single group, or label, can be learned from but not judged: its group is in no fold (-1).
    `find_unjudged` lists these classes, about which no estimate says anything.

    Args:
        labels: Classes, int, (N,).
        groups: Name of each example's group; None where each example stands alone.
        folds: Number K of folds, at most.
        repeats: Number R of divisions.
        seed: Seed of all divisions.
        class_names: Class names for messages, which otherwise give the class's number.

    Returns:
        Fold of each example, int64, (R, N), from 0 to K - 1, or -1.

    Raises:
        InputError: Fewer than two classes can be judged, or groups hold a class together in one fold.
    """
    check_min(2, folds=folds)
    check_min(1, repeats=repeats)
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    unit = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.zeros((unit.max(initial=-1) + 1, len(classes)), dtype=np.int64)  # examples by group and class
    np.add.at(counts, (unit, y), 1)
    groups_of_class = (counts > 0).sum(0)
    judged: Array = np.logical_not((counts[:, groups_of_class == 1] > 0).any(1))
    if ((counts[judged] > 0).sum(0) > 0).sum() < 2:
        kind = "labeled example" if groups is None else "group of labeled examples"
        single = [_name_class(c, class_names) for c in classes[groups_of_class == 1]]
        which = f", and class {single[0]} has a single one" if single else ""
        raise InputError(
            f"{len(classes)} class(es) are labeled{which}: add labels until 2 classes have more than one {kind}, since "
            "a class with a single one can be learned from but not judged"
        )
    groups_judged, examples = (counts[judged] > 0).sum(0), counts[judged].sum(0)
    while folds > 2 and examples[groups_judged < folds].sum() > _SMALL_SHARE * examples.sum():
        folds -= 1
    rng = np.random.default_rng(seed)
    return np.stack([_divide(counts, judged, folds, rng, classes, class_names)[unit] for _ in range(repeats)])


def find_unjudged(labels: ArrayLike, fold: Array) -> list[int]:
    """Return the classes of which no example is judged, in ascending order.

    Args:
        labels: Classes, int, (N,).
        fold: Fold of each example from `make_folds`, (R, N).
    """
    y = np.asarray(labels)
    return [int(label) for label in np.setdiff1d(y, y[fold[0] != UNJUDGED])]


def _divide(
    counts: Array,
    judged: Array,
    folds: int,
    rng: np.random.Generator,
    classes: Array,
    class_names: Sequence[str] | None,
) -> Array:
    """Return the fold of each group, int64, (G,): each goes where its classes have the fewest examples so far.

    Args:
        counts: Number of examples by group and class, int64, (G, C).
        judged: Whether a group is in a fold, bool, (G,).
        folds: Number of folds.
        rng: Source of the order.
        classes: Classes, (C,).
        class_names: Class names for messages.
    """
    rarity = np.where(counts > 0, (counts > 0).sum(0), len(counts)).min(1)  # groups of the group's rarest class
    shares = counts / counts.sum(0)
    for _ in range(_ATTEMPTS):
        fold = np.full(len(counts), UNJUDGED)
        filled = np.zeros((folds, counts.shape[1]))
        sizes = np.zeros(folds)
        order = rng.permutation(np.flatnonzero(judged))
        for g in order[np.lexsort((-counts[order].sum(1), rarity[order]))]:
            crowding = filled @ shares[g]
            fold[g] = np.lexsort((rng.random(folds), sizes, crowding.round(9)))[0]
            filled[fold[g]] += shares[g]
            sizes[fold[g]] += counts[g].sum()
        places = np.stack([counts[fold == k].any(0) for k in range(-1, folds)]).sum(0)
        held_together = np.flatnonzero((places < 2) & (counts[judged].any(0)))
        if not len(held_together) and (sizes > 0).all():
            return fold
    held = [f"class {_name_class(c, class_names)} in one fold" for c in classes[held_together]] or ["a fold empty"]
    raise InputError(f"groups of several classes leave {held[0]}: use smaller groups or add labels")


def _name_class(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else repr(class_names[label])
