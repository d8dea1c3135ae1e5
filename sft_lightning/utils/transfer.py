"""Transfers to and from a GPU that overlap with its work."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
MAX_MEMORY_SHARE = 0.25  # share of a GPU's free memory for the examples of one source or split


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. A copy to a GPU is queued: neither the CPU nor the work on the GPU waits for it.

    Args:
        x: Tensor on the CPU, or on the device already.
        device: Device to copy to.
    """
    if device.type != "cuda":  # elsewhere, an asynchronous copy may read memory that is already freed
        return x.to(device)
    return (x.pin_memory() if x.device.type == "cpu" else x).to(device, non_blocking=True)


def fits_in_memory(size: int, device: torch.device) -> bool:
    """Return whether examples may stay on a device from the start: on a GPU with four times as much free memory.

    Args:
        size: Size of the examples in bytes.
        device: Device of the network.
    """
    return device.type == "cuda" and size <= MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield items, of which a thread makes the next one while one is used.

    Args:
        items: Iterator that makes the items.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield cast(T, item)


def stream_to_cpu(computed: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield results on the CPU with a one-item lag, so that copies overlap with GPU work.

    Args:
        computed: Pairs of a tensor that is passed through and a tensor on the device.
    """
    before: tuple[Tensor, Tensor, torch.cuda.Event | None] | None = None
    for which, there in computed:
        here, event = there.to("cpu", non_blocking=True), None
        if there.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        if before is not None:
            yield _arrived(*before)
        before = which, here, event
    if before is not None:
        yield _arrived(*before)


def _arrived(which: Tensor, here: Tensor, event: torch.cuda.Event | None) -> tuple[Tensor, Tensor]:
    if event is not None:
        event.synchronize()
    return which, here
