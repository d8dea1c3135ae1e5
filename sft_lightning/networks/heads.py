"""Classifiers made without gradient steps on the features, after Kang et al. 2020 ("Decoupling Representation ...").

All of them are a linear layer in the end, so that any head can be saved, loaded and swapped like any other.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def nearest_class_mean(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The linear layer whose largest output is the class with the nearest mean (Euclidean).

    -|f - m|^2 / 2 is f.m - |m|^2 / 2 and a part that all classes share.

    Args:
        features: (N, F).
        labels: int64, (N,).
        num_classes: C.

    Returns:
        Weight (C, F) and bias (C,); a class without an example never wins.
    """
    hot = F.one_hot(labels, num_classes).to(features)
    counts = hot.sum(0)
    means = hot.T @ features / counts.clamp_min(1)[:, None]
    bias = -means.square().sum(1) / 2
    return means, torch.where(counts > 0, bias, torch.finfo(bias.dtype).min / 2)


def tau_normalized(weight: Tensor, tau: float) -> Tensor:
    """Weights of length |w|^(1 - tau): large classes grow long weights, which favors them. There is no bias.

    Args:
        weight: (C, F).
        tau: 0 changes nothing, 1 makes all of length 1.
    """
    length: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / length.clamp_min(1e-12).pow(tau)
