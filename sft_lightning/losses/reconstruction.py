"""The reconstruction loss of autoencoders.

Reference setting: L_rec = ||x - dec(enc(x))||^2 on MNIST, MLP encoder 784-128-64-32, Adam with rate 1e-3, batch 64, 100
epochs (Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks").
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.networks.encoder import FilledEntries
from sft_lightning.utils.inputs import Inputs, count_inputs


def reconstruction_loss(reconstructed: Inputs | FilledEntries, x: Inputs) -> Tensor:
    """Compute the squared error, averaged over all numbers and the batch, or the cross-entropy of hidden entries.

    Args:
        reconstructed: Output of the decoder, of the form of `x`, or answers for its hidden entries.
        x: Original inputs, (B, ...); of several tensors, the mean of their losses is taken.
    """
    if isinstance(reconstructed, FilledEntries):
        total = F.cross_entropy(reconstructed.logits.float(), reconstructed.entries, reduction="sum")
        return total / max(1, len(reconstructed.entries))
    if isinstance(x, Mapping):
        return torch.stack([F.mse_loss(reconstructed[name], x[name]) for name in x]).mean()
    return F.mse_loss(reconstructed, x)


def compute_reconstruction_errors(reconstructed: Inputs | FilledEntries, x: Inputs) -> Tensor:
    """Compute the mean squared error of each example, or the mean cross-entropy of its hidden entries, (B,).

    Args:
        reconstructed: Output of the decoder, of the form of `x`, or answers for its hidden entries.
        x: Original inputs, (B, ...); of several tensors, the mean of their errors is taken.
    """
    if isinstance(reconstructed, FilledEntries):
        logits, entries, examples, _ = reconstructed
        sums = torch.zeros(2, count_inputs(x), device=logits.device)
        errors = F.cross_entropy(logits.float(), entries, reduction="none")
        sums.index_add_(1, examples, torch.stack([errors, torch.ones_like(errors)]))
        return sums[0] / sums[1].clamp_min(1)
    if isinstance(x, Mapping):
        return torch.stack([_errors(reconstructed[name], x[name]) for name in x]).mean(0)
    return _errors(reconstructed, x)


def compute_fill_accuracy(filled: FilledEntries) -> Tensor:
    """Compute the share of hidden entries for which the most likely answer is right.

    Args:
        filled: Answers for hidden entries.
    """
    return (filled.logits.argmax(1) == filled.entries).float().sum() / max(1, len(filled.entries))


def _errors(reconstructed: Tensor, x: Tensor) -> Tensor:
    return (reconstructed - x).square().flatten(1).mean(1)
