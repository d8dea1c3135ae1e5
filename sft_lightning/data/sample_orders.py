"""Orders of a pass that are close to random and keep examples together that are cheaper so: near on disk, or as long.

The seed gives the order of shards. As many of them as the window holds are read at a time, and their examples are
shuffled together before the next group follows. If the window covers all shards, this is an ordinary shuffle.
"""

from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor

_PRIME = 2_147_483_647
_POOLED = 50  # groups among which examples are sorted by size
_KEPT = 2  # groups of shards whose order is in memory: a batch may reach into the next


def group_by_size(sizes: Tensor, group: int, seed: int) -> Tensor:
    """Return an order in which groups of examples have similar sizes, and groups follow one another at random.

    As many examples as 50 groups have are drawn at random, sorted by size and cut into groups, whose order is random.
    Each example comes once; those that fill no group come last.

    Args:
        sizes: Size of each example, such as its length, (N,).
        group: Number of examples of a group.
        seed: Seed of this pass.

    Returns:
        Positions, int64, (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sizes), generator=generator)
    full = len(sizes) // group * group
    pools = [pool[sizes[pool].argsort(stable=True)] for pool in order[:full].split(_POOLED * group)]
    groups = torch.cat(pools).view(-1, group) if pools and full else order[:0].view(0, group)
    shuffled = groups[torch.randperm(len(groups), generator=generator)]
    return torch.cat([shuffled.flatten(), order[full:]])


class Windowed:
    """Order of one pass, made group by group, so that memory grows with the window and not with the data."""

    def __init__(self, lengths: Tensor, window: int, seed: int) -> None:
        """Draw the order of the shards.

        Args:
            lengths: Number of examples of each shard, int64 of shape (S,); positions run through the shards in order.
            window: Number of shards whose examples are shuffled together.
            seed: Seed of this pass.
        """
        shards = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
        self._groups = shards.split(window)
        self._lengths, self._firsts = lengths, lengths.cumsum(0) - lengths
        self._stops = list(accumulate(int(lengths[group].sum()) for group in self._groups))
        self._seed = seed
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, places: slice) -> Tensor:
        """Return the examples at some positions of the pass, int64.

        Args:
            places: Slice of positions, without a step.
        """
        first, stop, _ = places.indices(len(self))
        pieces = [torch.empty(0, dtype=torch.long)]
        while first < stop:
            k = bisect_right(self._stops, first)
            start = self._stops[k - 1] if k else 0
            pieces.append(self._group(k)[first - start : stop - start])
            first += len(pieces[-1])
        return torch.cat(pieces)

    def _group(self, k: int) -> Tensor:
        if k not in self._made:
            own = self._groups[k].sort().values
            ranges = [torch.arange(int(self._firsts[s]), int(self._firsts[s] + self._lengths[s])) for s in own.tolist()]
            examples = torch.cat(ranges)
            generator = torch.Generator().manual_seed((self._seed * _PRIME + k + 1) % 2**63)
            self._made = dict(list(self._made.items())[1 - _KEPT :])
            self._made[k] = examples[torch.randperm(len(examples), generator=generator)]
        return self._made[k]
