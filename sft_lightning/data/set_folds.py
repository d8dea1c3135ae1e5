"""Divide labeled examples that have several classes into folds, so that each class is in most of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_lightning.data.set_splits import choose_by_share, join_units
from sft_lightning.utils.errors import InputError, check_min

UNJUDGED = -1  # fold of an example that is always learned from and never predicted


def make_set_folds(
    targets: NDArray[np.int64], groups: Sequence[str] | None = None, folds: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Divide examples into folds in which every class keeps its share (Sechidis et al. 2011); groups stay together.

    A class of a single group, or example, can be learned from but not judged: its group is in no fold (-1).

    Args:
        targets: 1 for each class of an example and 0 for the others, (N, C).
        groups: Name of each example's group; None where each example stands alone.
        folds: Number K of folds.
        seed: Seed of the order in which examples are divided.

    Returns:
        Fold of each example, int64, (1, N), from 0 to K - 1, or -1.

    Raises:
        InputError: There are fewer groups that can be judged than folds.
    """
    check_min(2, folds=folds)
    names = [str(i) for i in range(len(targets))] if groups is None else groups
    order = np.random.default_rng(seed).permutation(len(targets))
    counts, sizes, members = join_units(targets[order], [names[i] for i in order])
    alone = (counts > 0).sum(0) == 1
    left = np.flatnonzero(~(counts[:, alone] > 0).any(1))
    if len(left) < folds:
        kind = "examples" if groups is None else "groups of examples"
        raise InputError(
            f"folds is {folds}, and {len(left)} of {len(counts)} labeled {kind} can be judged, since a class of a "
            "single one can be learned from but not judged: add labels, or set fewer folds"
        )
    fold = np.full(len(targets), UNJUDGED)
    for k in range(folds):
        total = round(int(sizes[left].sum()) / (folds - k))
        # The last fold takes the rest, and the others leave at least one unit for each that follows.
        own = [*range(len(left))] if k == folds - 1 else choose_by_share(counts[left], sizes[left], max(1, total))
        own = own[: len(left) - (folds - 1 - k)] or [0]
        for unit in left[own]:
            fold[order[members[unit]]] = k
        left = np.delete(left, own)
    return fold[None]


def divide_sets(
    targets: NDArray[np.int64], groups: Sequence[str] | None, folds: int, repeats: int, seed: int
) -> NDArray[np.int64]:
    """Divide examples into folds several times, the same examples each time.

    A class of a single group, or example, cannot be judged: its examples are, by their other classes. Those without
    another are in no fold (-1), with all of their groups. There are fewer folds where there are fewer groups.

    Args:
        targets: 1 for each class of an example and 0 for the others, (N, C).
        groups: Name of each example's group; None where each example stands alone.
        folds: Number K of folds, at most.
        repeats: Number R of divisions.
        seed: Seed of all divisions.

    Returns:
        Fold of each example, int64, (R, N), from 0 to K - 1, or -1.

    Raises:
        InputError: Fewer than two groups can be judged.
    """
    unit = np.arange(len(targets)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    judged = _count_units(targets, unit) > 1
    alone = (targets > 0).any(1) & ~(targets[:, judged] > 0).any(1)
    is_in = ~np.isin(unit, unit[alone])
    inside = np.flatnonzero(is_in)
    number = len(np.unique(unit[inside]))
    if not judged.any() or number < 2:
        kind = "labeled examples" if groups is None else "groups of labeled examples"
        raise InputError(
            f"{number} {kind} have a class that another one has: add labels, since a class of a single one can be "
            "learned from but not judged"
        )
    names = [str(k) for k in unit[inside]]
    divisions = np.full((repeats, len(targets)), UNJUDGED)
    for r in range(repeats):
        made = make_set_folds(targets[inside][:, judged], names, min(folds, number), seed + r)
        divisions[r, inside] = made[0]
    return divisions


def _count_units(targets: NDArray[np.int64], unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many groups have each class, (C,); `unit` has the number of each example's group."""
    having = np.zeros((unit.max(initial=-1) + 1, targets.shape[1]), dtype=np.int64)
    np.maximum.at(having, unit, targets)
    counts: NDArray[np.int64] = having.sum(0)
    return counts


def find_unjudged_classes(
    targets: NDArray[np.int64], fold: NDArray[np.int64], groups: Sequence[str] | None = None
) -> list[int]:
    """Return the classes of a single group, or example, and those of which no example is judged, in ascending order.

    Args:
        targets: 1 for each class of an example and 0 for the others, (N, C).
        fold: Fold of each example, (N,); -1 for none.
        groups: Name of each example's group; None where each example stands alone.
    """
    unit = np.arange(len(targets)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    alone = _count_units(targets, unit) == 1
    missing = alone | ((targets.sum(0) > 0) & (targets[fold != UNJUDGED].sum(0) == 0))
    return [int(k) for k in np.flatnonzero(missing)]
