"""What a GPU gets of the data: all pictures at once where they fit, and copies that nobody waits for."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
MAX_MEMORY_SHARE = 0.25  # of the free memory of a GPU, at most so much for the pictures of one source or split


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The copy to a GPU is queued: neither the CPU nor what is under way there waits for it.

    Args:
        x: On the CPU, or there already.
        device: Where to.
    """
    if device.type != "cuda":  # elsewhere a copy that nobody waits for may read what is no longer there
        return x.to(device)
    return (x.pin_memory() if x.device.type == "cpu" else x).to(device, non_blocking=True)


def fits_in_memory(size: int, device: torch.device) -> bool:
    """Whether pictures may stay on a device from the start: on a GPU with four times as much free memory.

    Args:
        size: Bytes.
        device: Of the network.
    """
    return device.type == "cuda" and size <= MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items; a thread makes the next one while one is used.

    Args:
        items: Made by an iterator.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield cast(T, item)


def stream_to_cpu(computed: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Results on the CPU, each one late: while it is read, a GPU is at the next.

    Args:
        computed: Pairs of what stays as it is and what comes from the device.
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
