"""Splits of examples with several classes each, in which every class keeps its share."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def choose_by_share(counts: Counts, sizes: Counts, total: int, at_least_one: bool = False) -> list[int]:
    """Choose units so that each class has nearly the same share of its examples among them.

    Sechidis et al. 2011, "On the Stratification of Multi-Label Data": units with the rarest class that is left come
    first, and each goes to the part that lacks more of it. Where they draw at random, units keep their order here.

    Args:
        counts: Number of examples with each class in each unit, (N, C); a unit is an example, or a group.
        sizes: Number of examples of each unit, (N,).
        total: Number of examples to choose; exact where all units are single examples.
        at_least_one: Whether to choose an example of every class, however rare.

    Returns:
        Positions of the chosen units.
    """
    every = counts.sum(0)
    share = total / max(1, int(sizes.sum()))
    inside = every * share
    if at_least_one:
        inside = np.maximum(inside, np.minimum(every, 1))
    outside = every - inside
    room, others = float(total), float(sizes.sum() - total)
    left = np.ones(len(counts), dtype=bool)
    chosen: list[int] = []
    while left.any():
        remaining = counts[left].sum(0)
        classes = np.flatnonzero(remaining)
        rarest = int(classes[np.argmin(remaining[classes])]) if len(classes) else None
        units = np.flatnonzero(left if rarest is None else left & (counts[:, rarest] > 0))
        for unit in units.tolist():
            left[unit] = False
            own, size = counts[unit], float(sizes[unit])
            lacks = (room, others) if rarest is None else (inside[rarest], outside[rarest])
            takes = lacks[0] > lacks[1] or (lacks[0] == lacks[1] and room >= others)
            if (takes and room >= size / 2) or others < size / 2:
                chosen.append(unit)
                inside, room = inside - own, room - size
            else:
                outside, others = outside - own, others - size
    return chosen


def choose_of_each(counts: Counts, number: int) -> list[int]:
    """Choose examples so that each class has a number of them, the rarest class first.

    Args:
        counts: 1 where an example has a class, (N, C).
        number: Number of examples of each class, at least; an example of several classes counts for each.

    Returns:
        Positions of the chosen examples.
    """
    chosen = np.zeros(len(counts), dtype=bool)
    for k in np.argsort(counts.sum(0), kind="stable").tolist():
        missing = number - int(counts[chosen, k].sum())
        chosen[np.flatnonzero(~chosen & (counts[:, k] > 0))[: max(0, missing)]] = True
    positions: list[int] = np.flatnonzero(chosen).tolist()
    return positions


def join_units(counts: Counts, groups: Sequence[str]) -> tuple[Counts, Counts, list[list[int]]]:
    """Join examples of a group into one unit each, in the order of their first examples.

    Args:
        counts: 1 where an example has a class, (N, C).
        groups: Group of each example.

    Returns:
        Counts of the units, (U, C), their sizes, (U,), and the positions of their examples.
    """
    members: dict[str, list[int]] = {}
    for position, name in enumerate(groups):
        members.setdefault(name, []).append(position)
    listed = [*members.values()]
    joined = np.array([counts[own].sum(0) for own in listed]).reshape(len(listed), counts.shape[1])
    return joined, np.array([len(own) for own in listed]), listed


def choose_sets(
    names: Sequence[str],
    counts: Counts,
    groups: Sequence[str] | None,
    key: Callable[[str], bytes],
    total: int | None,
    of_each: int | None = None,
    at_least_one: bool = False,
) -> set[int]:
    """Choose examples in the order of their keys, so that every class keeps its share; groups stay together.

    Args:
        names: Names of the candidates.
        counts: 1 where a candidate has a class, (N, C).
        groups: Group of each candidate, or None.
        key: Sorting key of a name or group, which replaces a random number.
        total: Number of examples; None for `of_each`.
        of_each: Number of examples of each class, at least.
        at_least_one: Whether to choose an example of every class, however rare.

    Returns:
        Positions in `names`.
    """
    owners = names if groups is None else groups
    order = sorted(range(len(names)), key=lambda i: (key(owners[i]), i))
    if total is None:
        return {order[k] for k in choose_of_each(counts[order], of_each or 0)}
    units, sizes, members = join_units(counts[order], [owners[i] for i in order])
    return {order[k] for unit in choose_by_share(units, sizes, total, at_least_one) for k in members[unit]}
