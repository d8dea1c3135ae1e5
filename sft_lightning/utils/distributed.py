"""Statistics over the examples of all processes, so that two processes learn the same as one."""

from typing import Any

import torch
from torch import Tensor, distributed


class _Sum(torch.autograd.Function):
    """A sum over ranks with a gradient: torch deprecates its own, and the replacement is private."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def is_distributed() -> bool:
    """Return whether this is one of several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum a tensor over all processes; gradients flow back to each of them.

    Args:
        value: Tensor of equal shape on all ranks; it is not changed.
    """
    if not is_distributed():
        return value
    total: Tensor = _Sum.apply(value)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Compute the mean over the examples of all processes, so that a global statistic is the same on each.

    Args:
        values: Tensor of shape (B,) or (B, C); B may differ between ranks.

    Returns:
        Tensor without dimensions, or of shape (C,).
    """
    return sum_over_ranks(values.detach().sum(0)) / sum_over_ranks(values.new_full((), len(values)))


def all_gather_cat(values: Tensor) -> Tensor:
    """Concatenate the examples of all processes in the order of the ranks; gradients flow back to their ranks.

    Args:
        values: Tensor of shape (B, ...); B may differ between ranks.
    """
    if not is_distributed():
        return values
    rank, world = distributed.get_rank(), distributed.get_world_size()
    sizes = sum_over_ranks(len(values) * (torch.arange(world, device=values.device) == rank))
    # Each rank pads its own values with zeros, so that the sum is the concatenation.
    most = int(sizes.max())
    mine = torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])
    before, after = (values.new_zeros(n * most, *values.shape[1:]) for n in (rank, world - 1 - rank))
    pieces = sum_over_ranks(torch.cat([before, mine, after])).split(most)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes.tolist(), strict=True)])
