"""Sets of copies among examples, which cross-validation keeps together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split

Edges = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Sets of copies among examples.

    Attributes:
        sets: Number of the set of each example; an example without copies forms its own set.
        exact: Number of examples that equal an earlier one.
        near: Number of further examples that nearly equal an earlier one.
    """

    sets: list[int]
    exact: int
    near: int

    def __str__(self) -> str:
        kinds = [f"{n} {kind}" for n, kind in ((self.exact, "exact"), (self.near, "near")) if n]
        return f"{' and '.join(kinds)} {'copy' if self.count == 1 else 'copies'} of others"

    @property
    def count(self) -> int:
        """Number of examples that repeat an earlier one."""
        return self.exact + self.near

    def join_groups(self, groups: Sequence[str] | None) -> list[str] | None:
        """Join copies, and groups that share a copy, into groups that must stay together.

        Args:
            groups: Group of each example in its source, or None.

        Returns:
            Name of each example's group; `groups` itself if nothing is copied.
        """
        if not self.count:
            return None if groups is None else list(groups)
        if groups is None:
            return [str(number) for number in self.sets]
        edges = np.concatenate([link_to_first(self.sets), link_to_first(groups)])
        return [str(number) for number in label_components(len(groups), edges)]

    def pick_representatives(self, labels: Sequence[int]) -> list[int]:
        """Return the position of the first example of each set and label.

        Args:
            labels: Class of each example. Copies with different labels are all kept: which label is right is unknown.
        """
        first: dict[tuple[int, int], int] = {}
        for i, key in enumerate(zip(self.sets, labels, strict=True)):
            first.setdefault(key, i)
        return list(first.values())


def find_exact_copies(splits: Sequence[Split]) -> Copies:
    """Find examples of equal content.

    Args:
        splits: Splits, whose examples are numbered one split after the other.
    """
    contents = [one for split in splits for one in split.part.storage.fingerprints(split.indices)]
    return Copies(label_components(len(contents), link_to_first(contents)), len(contents) - len(set(contents)), 0)


def get_groups(examples: Sequence[tuple[Examples, int]]) -> list[str] | None:
    """Return the source's group of each example, or None if the source has no groups.

    Args:
        examples: Collection and position of each example; one without groups is the only member of its group.
    """
    if all(part.groups is None for part, _ in examples):
        return None
    return [part.ids[k] if part.groups is None else part.groups[k] for part, k in examples]


def group_copies(split: Split) -> list[str] | None:
    """Return the group of each example of a split: that of its source, joined with others that hold an exact copy.

    Args:
        split: Split.

    Returns:
        Name of each example's group, or None if the source has no groups and nothing is copied.
    """
    return find_exact_copies([split]).join_groups(get_groups([(split.part, i) for i in split.indices]))


def link_to_first(names: Sequence[object]) -> Edges:
    """Return an edge from each position whose name occurred before to the first position with that name.

    Args:
        names: Name of each position.
    """
    first: dict[object, int] = {}
    edges = [(i, first.setdefault(name, i)) for i, name in enumerate(names)]
    return np.array([(i, j) for i, j in edges if i != j], np.int64).reshape(-1, 2)


def label_components(count: int, edges: Edges) -> list[int]:
    """Return the number of the connected component of each position.

    Args:
        count: Number of positions.
        edges: Pairs of positions, (E, 2).
    """
    if not count:
        return []
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    return [int(number) for number in connected_components(graph, directed=False)[1]]
