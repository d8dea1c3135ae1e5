"""Settings of the process that save CPU time without changing results."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes, the largest value that it takes


def count_cores() -> int:
    """Return the number of cores that this process may use; on macOS and Windows, of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_cpu() -> None:
    """Make torch's threads take denormal numbers as zero, and look for a GPU only once.

    Threads inherit the mode from the one that starts them, and training steps set it for the calling thread alone (see
    `flush_denormals`), so this must come before the first parallel operation. The caller's own mode stays.

    Lightning (`lightning/fabric/__init__.py`) makes torch ask NVIDIA's management library whether there is a GPU.
    torch's optimizers ask in each step, and where the library is missing each answer takes 0.2 ms.
    """
    with flush_denormals():
        torch.zeros(2**20).add_(1)  # large enough for all threads
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Take denormal numbers as zero in this thread, and restore the mode afterward.

    Adam's first moment of a unit that is never active shrinks until it is denormal (below 1.2e-38 in float32), and the
    CPU computes with such numbers 10 to 100 times slower: a step of the reference's autoencoder took 1.4 times longer.

    Other libraries may count on denormal numbers: where the difference of two unequal numbers is zero, SciPy's k-d tree
    recurses until the stack ends. So this belongs around a training step and nothing else.
    """
    was_set = sys.float_info.min / 2 == 0  # torch does not say
    torch.set_flush_denormal(True)  # False where the CPU cannot, which is no loss
    try:
        yield
    finally:
        torch.set_flush_denormal(was_set)


def retain_freed_memory() -> None:
    """Keep the memory that a step frees for the next one, up to 2 GB.

    glibc gives large blocks back to the kernel, which clears each page anew: a FixMatch step of the small CNN took
    20,000 page faults and a quarter more time. Call it when the data is read, since what is freed before then should
    go back. Does nothing with another C library.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
