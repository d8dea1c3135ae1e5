"""The reconstruction loss of autoencoders.

Reference setting: L_rec = ||x - dec(enc(x))||^2 on MNIST, MLP encoder 784-128-64-32, Adam with rate 1e-3, batch 64, 100
epochs (Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks").
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.utils.inputs import Inputs


def reconstruction_loss(reconstructed: Inputs, x: Inputs) -> Tensor:
    """Compute the squared error, averaged over all numbers and the batch.

    Args:
        reconstructed: Output of the decoder, of the form of `x`.
        x: Original inputs, (B, ...); of several tensors, the mean of their losses is taken.
    """
    if isinstance(x, Mapping):
        return torch.stack([F.mse_loss(reconstructed[name], x[name]) for name in x]).mean()
    return F.mse_loss(reconstructed, x)


def compute_reconstruction_errors(reconstructed: Inputs, x: Inputs) -> Tensor:
    """Compute the mean squared error of each example, (B,).

    Args:
        reconstructed: Output of the decoder, of the form of `x`.
        x: Original inputs, (B, ...); of several tensors, the mean of their errors is taken.
    """
    if isinstance(x, Mapping):
        return torch.stack([_errors(reconstructed[name], x[name]) for name in x]).mean(0)
    return _errors(reconstructed, x)


def _errors(reconstructed: Tensor, x: Tensor) -> Tensor:
    return (reconstructed - x).square().flatten(1).mean(1)
