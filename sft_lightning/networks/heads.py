"""Classifiers made without gradient steps on the features, after Kang et al. 2020 ("Decoupling Representation ...").

Each is a linear layer in the end.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

_NEVER = -1e4  # a logit that wins against no other, and that half precision can hold


def fit_class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The linear layer whose largest output is the class whose mean points most nearly where the features do.

    Args:
        features: (N, F).
        labels: int64, (N,).
        num_classes: C.

    Returns:
        Weight (C, F), the means at length 1, and bias (C,); a class without an example never wins.
    """
    hot = F.one_hot(labels, num_classes).to(features)
    return F.normalize(hot.T @ features, dim=1), torch.where(hot.sum(0) > 0, 0.0, _NEVER).to(features)


def normalize_tau(weight: Tensor, tau: float) -> Tensor:
    """Weights of length |w|^(1 - tau): large classes grow long weights, which favors them. There is no bias.

    Args:
        weight: (C, F).
        tau: 0 changes nothing, 1 makes all of length 1.
    """
    length: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / length.clamp_min(1e-12).pow(tau)


def extract_linear_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head among the tensors of a file.

    Args:
        tensors: Of a checkpoint, a model or a head: `head.weight`, `head.bias` and, of an `lws` head, `scale`.

    Returns:
        `weight` (C, F) and `bias` (C,), or nothing.
    """
    weight, bias, scale = (tensors.get(name) for name in ("head.weight", "head.bias", "scale"))
    if weight is None or bias is None:
        return {}
    return {"weight": weight if scale is None or len(scale) != len(weight) else weight * scale[:, None], "bias": bias}
