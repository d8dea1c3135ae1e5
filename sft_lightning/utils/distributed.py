"""Statistics over the examples of all processes, so that two processes learn what one would."""

from typing import Any

import torch
from torch import Tensor, distributed


class _Sum(torch.autograd.Function):
    """torch deprecates its own sum with a gradient, and its replacement is private."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def is_distributed() -> bool:
    """Whether this is one of several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes; its gradient is that of the sum, too.

    Args:
        value: Of equal shape on all ranks; not changed.
    """
    if not is_distributed():
        return value
    total: Tensor = _Sum.apply(value)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over the examples of all processes, so that a global statistic is the same on each.

    Args:
        values: (B,) or (B, C); B may differ between ranks.

    Returns:
        A scalar, or (C,).
    """
    return sum_over_ranks(values.detach().sum(0)) / sum_over_ranks(values.new_full((), len(values)))


def all_gather_cat(values: Tensor) -> Tensor:
    """The examples of all processes, in the order of the ranks; gradients flow back to where they came from.

    Args:
        values: (B, ...); B may differ between ranks.
    """
    if not is_distributed():
        return values
    rank, world = distributed.get_rank(), distributed.get_world_size()
    sizes = sum_over_ranks(len(values) * (torch.arange(world, device=values.device) == rank))
    # Each puts its own between zeros, so that the sum is all of them.
    most = int(sizes.max())
    mine = torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])
    before, after = (values.new_zeros(n * most, *values.shape[1:]) for n in (rank, world - 1 - rank))
    pieces = sum_over_ranks(torch.cat([before, mine, after])).split(most)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes.tolist(), strict=True)])
