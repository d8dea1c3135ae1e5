"""What an audit measures of each example of a split, and pairs of examples that are copies, whatever their modality."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Generic, TypeVar

from sft_lightning.data.splits import Split

StatsT = TypeVar("StatsT")


@dataclass
class SplitStats(Generic[StatsT]):
    """Statistics of the examples of a split.

    Attributes:
        name: Name of the split.
        split: Examples of the split.
        examples: Statistics of the example at each position, or the reason why it cannot be read.
    """

    name: str
    split: Split
    examples: list[StatsT | str]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def readable(self) -> Iterator[tuple[int, StatsT]]:
        """Positions and statistics of the readable examples."""
        return ((i, one) for i, one in enumerate(self.examples) if not isinstance(one, str))

    def label(self, position: int) -> int:
        """Return the label that a run can train or evaluate with, or -1.

        Args:
            position: Position of the example in the split.
        """
        return -1 if self.name == "unlabeled" else int(self.split.part.labels[self.split.indices[position]])

    def id(self, position: int) -> str:
        """Return the name of an example.

        Args:
            position: Position of the example in the split.
        """
        return self.split.part.ids[self.split.indices[position]]


@dataclass(frozen=True)
class Pair:
    """Pair of exact or near-duplicates.

    Attributes:
        first: Split and position of one example.
        second: Split and position of the other example.
        difference: Difference of the two, as the modality measures it, 0 to 1; 0 for exact duplicates.
    """

    first: tuple[SplitStats[Any], int]
    second: tuple[SplitStats[Any], int]
    difference: float = 0.0


def find_equal(stats: Sequence[SplitStats[Any]], contents: Sequence[dict[int, Any]]) -> list[Pair]:
    """Find pairs of equal content within each split and between any two splits.

    Args:
        stats: Statistics of the splits.
        contents: Content of each readable example by its position, one mapping for each split.
    """
    firsts: list[dict[object, int]] = []
    for own in contents:
        firsts.append({})
        for i, content in own.items():
            firsts[-1].setdefault(content, i)
    return [
        Pair((stats[a], i), (stats[b], j))
        for a, b in combinations_with_replacement(range(len(stats)), 2)
        for i, content in contents[a].items()
        if (j := firsts[b].get(content)) is not None and (a != b or j < i)
    ]
