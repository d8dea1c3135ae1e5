"""Statistics over the examples of all processes, so that two processes learn what one would."""

import torch
from torch import Tensor, distributed


def together() -> bool:
    """Whether this is one of several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes; its gradient is that of the sum, too.

    Args:
        value: Of equal shape on all ranks; not changed.
    """
    if not together():
        return value
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    total: Tensor = all_reduce(value)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over the examples of all processes, so that a global statistic is the same on each.

    Args:
        values: (B,) or (B, C); B may differ between ranks.

    Returns:
        A scalar, or (C,).
    """
    return sum_over_ranks(values.detach().sum(0)) / sum_over_ranks(values.new_tensor(float(len(values))))


def gathered(values: Tensor) -> Tensor:
    """The examples of all processes, in the order of the ranks; gradients flow back to where they came from.

    Args:
        values: (B, ...); B may differ between ranks.
    """
    if not together():
        return values
    from torch.distributed.nn.functional import all_gather

    counts = [torch.zeros((), dtype=torch.long, device=values.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor(len(values), device=values.device))
    sizes = [int(count) for count in counts]
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values), *values.shape[1:])])
    pieces = all_gather(padded) if values.requires_grad else _plain_gather(padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def _plain_gather(values: Tensor) -> list[Tensor]:
    pieces = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(pieces, values.contiguous())
    return pieces
