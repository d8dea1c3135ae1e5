"""Choice of the examples of each batch, as a pure function of the seed and the batch number.

A loader that starts at a given number continues from there, whatever the number of workers and processes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sft_lightning.data.sample_orders import Windowed

PRIME = 1_000_003  # distance between seeds whose random streams must differ


class BatchPlan:
    """Plan of the examples that a batch of this process holds, as a pure function of its number.

    Training passes over the examples in a new order each pass. The batches of all processes together equal
    those of a single process whose batch size is multiplied by the number of processes. A last batch of fewer than two
    examples per process is merged into the one before, because batch normalization needs at least two.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int = 0, shuffle: bool = False, rank: int = 0, world_size: int = 1,
        endless: bool = False, balance: Tensor | None = None, order: Callable[[int], Windowed | Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Plan the passes.

        Args:
            count: Number of examples.
            batch_size: Number of examples of a batch of one process.
            seed: Seed of the orders and views.
            shuffle: Whether each pass has a new order (training) or the order of the split (evaluation).
            rank: Rank of this process.
            world_size: Number of processes.
            endless: Whether batches are always full and run across passes, as for few labels beside other examples.
            balance: Labels, int64 of shape (count,), if a pass visits the classes in turn, each equally often.
            order: Function from a seed to the order of a pass, in place of a uniform shuffle; ignored if `balance` is
                given.
        """
        self.endless, self._balance = endless, balance
        self._drawn = order if balance is None else None
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        if endless:
            self.per_pass = math.ceil(count / (batch_size * world_size))
        elif shuffle:
            everyone = batch_size * world_size
            self.per_pass = math.ceil(count / everyone)
            if self.per_pass > 1 and count - (self.per_pass - 1) * everyone < 2 * world_size:
                self.per_pass -= 1
        else:  # evaluation: this process takes every world_size-th example, so none is seen twice
            self.per_pass = math.ceil(len(range(rank, count, world_size)) / batch_size)
        self._order: tuple[int, Tensor | Windowed] | None = None
        self._later: tuple[BatchPlan, int] | None = None

    def then(self, later: "BatchPlan", start: int) -> "BatchPlan":
        """Switch to another plan at a batch, and return this plan.

        Args:
            later: Plan to switch to.
            start: First batch of the other plan, counted from the start of training.
        """
        self._later = later, start
        return self

    def _pass(self, number: int) -> Tensor | Windowed:
        if self._order is None or self._order[0] != number:
            order: Tensor | Windowed
            seed = self.seed * PRIME + number
            if self.shuffle and self._drawn is not None:
                order = self._drawn(seed)
            elif self.shuffle:
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(self.count, generator=generator)
                if self._balance is not None:
                    order = _in_turn(order, self._balance)
            else:
                order = torch.arange(self.rank, self.count, self.world_size)
            self._order = number, order
        return self._order[1]

    def __getitem__(self, batch_idx: int) -> tuple[Tensor, int]:
        """Return the examples of a batch and the seed of its views.

        Args:
            batch_idx: Number of the batch since the start of training.
        """
        if self._later is not None and batch_idx >= self._later[1]:
            return self._later[0][batch_idx]
        draw = (self.seed * PRIME + batch_idx) * self.world_size + self.rank
        if self.endless:
            first = (batch_idx * self.world_size + self.rank) * self.batch_size
            return self._across(first, self.batch_size), draw
        number, k = divmod(batch_idx, self.per_pass)
        order = self._pass(number)
        width = self.batch_size * (self.world_size if self.shuffle else 1)
        chunk = order[k * width : None if k == self.per_pass - 1 else (k + 1) * width]
        if self.shuffle and self.world_size > 1:
            chunk = torch.tensor_split(chunk, self.world_size)[self.rank]
        return chunk, draw

    def place(self, batch_idx: int) -> tuple[int, int] | None:
        """Return the progress before a batch: completed passes, and examples of the current pass.

        Args:
            batch_idx: Number of the batch since the start of training.

        Returns:
            Passes and examples, or None if another plan follows, which counts differently.
        """
        width = self.batch_size * self.world_size
        if self._later is not None:
            return None
        if self.endless:
            return divmod(batch_idx * width, self._length)
        number, k = divmod(batch_idx, self.per_pass)
        return number, k * width

    def after(self, place: tuple[int, int]) -> int:
        """Return the first batch that repeats no example of the current pass, given progress made with any batch size.

        Args:
            place: Progress from `place` of a plan with the same examples and seed, and any batch size and number of
                processes.
        """
        width = self.batch_size * self.world_size
        if self.endless:
            return -(-(place[0] * self._length + place[1]) // width)
        return place[0] * self.per_pass + min(self.per_pass, -(-place[1] // width))

    @property
    def _length(self) -> int:
        """Number of examples of a pass."""
        return len(self._pass(0) if self._order is None else self._order[1])

    def _across(self, first: int, size: int) -> Tensor:
        """Return the examples at positions first to first + size - 1 of all passes in a row."""
        number, place = divmod(first, self._length)
        pieces: list[Tensor] = []
        while size > 0:
            piece = self._pass(number)[place : place + size]
            pieces.append(piece)
            size, number, place = size - len(piece), number + 1, 0
        return torch.cat(pieces)


def _in_turn(order: Tensor, labels: Tensor) -> Tensor:
    """Order the examples such that classes take turns, and repeat those of small classes up to the largest."""
    by_class = [order[labels[order] == c] for c in labels.unique()]
    most = max(len(own) for own in by_class)
    rounds = torch.stack([own.repeat(-(-most // len(own)))[:most] for own in by_class], 1)
    return rounds.flatten()


def once_in_turn(order: Tensor, labels: Tensor) -> Tensor:
    """Order the examples such that classes take turns until they run out, without repetition.

    Args:
        order: Positions, int64 of shape (N,).
        labels: Labels by position, int64.
    """
    own = labels[order]
    turn = torch.empty_like(order)
    for c in own.unique():
        here = own == c
        turn[here] = torch.arange(int(here.sum()))
    return order[turn.argsort(stable=True)]
