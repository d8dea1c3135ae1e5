"""Reconstruction: how far a drawn picture is from the true one, and how to make the task harder.

Denoising: Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders". Masking of
patches: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (there with a transformer that sees only
the rest; here hidden patches are zero).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.utils.transfer import to_device


def reconstruction_loss(drawn: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over pixels and batch.

    Args:
        drawn: (B, C, H, W).
        x: (B, C, H, W).
    """
    return F.mse_loss(drawn, x)


def add_noise(x: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Adds Gaussian noise and keeps pixels in [0, 1].

    Args:
        x: (B, C, H, W) in [0, 1].
        std: Standard deviation in units of the pixel range.
        generator: Of the noise, on the CPU; None for torch's global one.
    """
    return (x + std * to_device(torch.randn(x.shape, generator=generator), x.device)).clamp(0, 1)


def hide_patches(x: Tensor, share: float, patch: int, generator: torch.Generator | None = None) -> Tensor:
    """Sets a share of the square patches of each picture to zero.

    Args:
        x: (B, C, H, W).
        share: Of the patches that are hidden, 0 to 1.
        patch: Side of a patch in pixels.
        generator: Chooses the patches, on the CPU; None for torch's global one.
    """
    rows, columns = math.ceil(x.shape[2] / patch), math.ceil(x.shape[3] / patch)
    drawn = torch.rand(len(x), 1, rows, columns, generator=generator)
    seen = to_device(drawn >= share, x.device).to(x.dtype)
    mask = seen.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return x * mask[:, :, : x.shape[2], : x.shape[3]]
