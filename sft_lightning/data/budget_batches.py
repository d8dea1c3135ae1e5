"""Batches of examples of similar size, as many as a budget allows, as a pure function of the seed and their number.

Sizes are those of sequences, which a batch pads to its longest one: a batch of N examples costs N times that.
"""

import torch
from torch import Tensor

from sft_lightning.data.batch_sampling import PRIME, BatchPlan

_STEP = 8  # sizes are rounded up to multiples, so that more examples can meet in a batch


class BudgetPlan(BatchPlan):
    """Plan of training batches in which the number of examples times the largest size is at most a budget.

    A pass shuffles the examples, sorts them by rounded size, cuts them, and shuffles the batches. Sorted sizes are the
    same in every pass, and so are the cuts, so that each pass has the same number of batches. The batch of all
    processes is cut with the budget of all, and divided evenly.
    """

    def __init__(self, sizes: Tensor, budget: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Cut the sorted sizes.

        Args:
            sizes: Size of each example, int64, (N,), with N of at least the number of processes.
            budget: Largest product of the number of examples of a batch of one process and their largest size.
            seed: Seed of the orders and views.
            rank: Rank of this process.
            world_size: Number of processes.
        """
        super().__init__(len(sizes), 1, seed, True, rank, world_size)
        self._sizes = (-(-sizes // _STEP) * _STEP).clamp_max(int(sizes.max()))
        self._counts = cut_by_budget(self._sizes.sort().values.tolist(), budget, world_size)
        self.per_pass = len(self._counts)
        self._batches: tuple[int, list[Tensor]] | None = None

    def __getitem__(self, batch_idx: int) -> tuple[Tensor, int]:
        """Return the examples of a batch and the seed of its views.

        Args:
            batch_idx: Number of the batch since the start of training.
        """
        number, k = divmod(batch_idx, self.per_pass)
        if self._batches is None or self._batches[0] != number:
            generator = torch.Generator().manual_seed(self.seed * PRIME + number)
            order = torch.randperm(self.count, generator=generator)
            order = order[self._sizes[order].argsort(stable=True)]
            cut = order.split(self._counts)
            self._batches = number, [cut[i] for i in torch.randperm(self.per_pass, generator=generator).tolist()]
        everyone = self._batches[1][k]
        draw = (self.seed * PRIME + batch_idx) * self.world_size + self.rank
        return torch.tensor_split(everyone, self.world_size)[self.rank], draw

    def place(self, batch_idx: int) -> None:
        """Return nothing: a run that resumes with another budget goes on at the same batch number."""


def cut_by_budget(sizes: list[int], budget: int, world_size: int = 1) -> list[int]:
    """Return how many examples each batch of all processes has.

    Args:
        sizes: Sizes in rising order.
        budget: Largest product of the number of examples of one process and their largest size. Where not even one
            example of each process fits, or the last ones are too few for all processes, it is exceeded.
        world_size: Number of processes; counts are multiples of it, but for the last ones, which are not below it.
    """
    counts, first = [], 0
    while first < len(sizes):
        each = 1
        while first + each * world_size < len(sizes):
            last = min(first + (each + 1) * world_size, len(sizes)) - 1
            if (each + 1) * sizes[last] > budget:
                break
            each += 1
        counts.append(min(each * world_size, len(sizes) - first))
        first += counts[-1]
    if len(counts) > 1 and counts[-1] < world_size:
        missing = world_size - counts[-1]
        if counts[-2] - missing >= world_size:
            counts[-2:] = [counts[-2] - missing, world_size]
        else:
            counts[-2:] = [counts[-2] + counts[-1]]
    return counts
