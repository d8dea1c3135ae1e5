"""Settings of the process that spare the CPU work which no result shows."""

import ctypes
import os
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes, the most that it takes


def cores() -> int:
    """Cores that this process may use; macOS and Windows only tell how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_cpu() -> None:
    """Takes denormal numbers as zero, and stops looking for a GPU in each step where there is none.

    Adam's first moment of a unit that is never active shrinks until it is denormal (below 1.2e-38 in float32), and the
    CPU computes with such numbers 10 to 100 times slower: a step of the reference's autoencoder took 1.4 times longer.
    Threads inherit the setting from the one that starts them, so this must come before the first parallel operation.

    Lightning (`lightning/fabric/__init__.py`) makes torch ask NVIDIA's management library whether there is a GPU.
    torch's optimizers ask in each step, and where the library is missing each answer takes 0.2 ms.
    """
    torch.set_flush_denormal(True)  # False where the CPU cannot, which is no loss
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def keep_memory() -> None:
    """Keeps the memory that a step frees for the next one, up to 2 GB.

    glibc gives large blocks back to the kernel, which clears each page anew: a FixMatch step of the small CNN took
    20,000 page faults and a quarter more time. Call it when the data is read, since what is freed before then should
    go back. Does nothing where the C library is another one.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
