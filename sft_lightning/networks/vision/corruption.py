"""Corruptions of the images that a denoising or masked autoencoder reconstructs.

Denoising: Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders". Masking: He et
al. 2022, "Masked Autoencoders Are Scalable Vision Learners", where a transformer sees only the visible patches; here
hidden patches are zero.
"""

import math

import torch
from torch import Tensor

from sft_lightning.utils.transfer import to_device


def add_noise(x: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise and clamp pixels to [0, 1].

    Args:
        x: Images in [0, 1], (B, C, H, W).
        std: Standard deviation of the noise in units of the pixel range.
        generator: CPU generator of the noise; None for torch's global one.
    """
    return (x + std * to_device(torch.randn(x.shape, generator=generator), x.device)).clamp(0, 1)


def hide_patches(x: Tensor, share: float, patch: int, generator: torch.Generator | None = None) -> Tensor:
    """Set a random share of the square patches of each image to zero.

    Args:
        x: Images, (B, C, H, W).
        share: Probability that a patch is hidden, 0 to 1.
        patch: Side of a patch in pixels.
        generator: CPU generator that chooses the patches; None for torch's global one.
    """
    rows, columns = math.ceil(x.shape[2] / patch), math.ceil(x.shape[3] / patch)
    numbers = torch.rand(len(x), 1, rows, columns, generator=generator)
    visible = to_device(numbers >= share, x.device).to(x.dtype)
    mask = visible.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return x * mask[:, :, : x.shape[2], : x.shape[3]]
