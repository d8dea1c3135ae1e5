"""Two settings of the process that spare the CPU work which no result shows."""

import os

import torch


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
