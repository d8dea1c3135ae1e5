"""Choice of examples for unaugmented passes, and batches that carry the names of their examples."""

from collections.abc import Iterator

import torch

from sft_lightning.data.batch_sampling import once_in_turn
from sft_lightning.data.loaders import EvalLoader, RawBatch
from sft_lightning.data.splits import Split


def choose_by_class(split: Split, most: int, seed: int) -> Split:
    """Choose examples of a split with classes in turn: all of a small class, and some of a large one.

    Args:
        split: Split to choose from.
        most: Maximum number of examples.
        seed: Seed of the choice.
    """
    if len(split) <= most:
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    chosen = once_in_turn(order, split.labels)[:most].sort().values
    return Split(split.part, [split.indices[k] for k in chosen.tolist()])


def choose_at_random(split: Split, most: int, seed: int) -> Split:
    """Choose examples of a split at random, regardless of class.

    Args:
        split: Split to choose from.
        most: Maximum number of examples.
        seed: Seed of the choice.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return Split(split.part, [split.indices[k] for k in order[:most].sort().values.tolist()])


class NamedBatches:
    """Batches of a split that carry the names of their examples."""

    def __init__(self, batches: EvalLoader, names: list[str]) -> None:
        """Join batches and names.

        Args:
            batches: Batches of the split.
            names: Names of the examples, in the order of the split.
        """
        self._batches, self._names = batches, names

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RawBatch]:
        for batch in self._batches:
            yield batch._replace(names=[self._names[i] for i in batch.indices.tolist()])
