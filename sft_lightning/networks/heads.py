"""Linear classifiers computed from features or weights without gradient steps.

Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition".
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = -1e4  # a logit that never wins and that half precision can represent


def fit_class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fit the nearest-class-mean classifier for the cosine similarity.

    Args:
        features: Features, (N, F).
        labels: Classes, int64, (N,).
        num_classes: Number of classes C.

    Returns:
        Weight (C, F), the normalized class means, and bias (C,); a class without examples never wins.
    """
    one_hot = F.one_hot(labels, num_classes).to(features)
    return F.normalize(one_hot.T @ features, dim=1), torch.where(one_hot.sum(0) > 0, 0.0, NEVER).to(features)


def normalize_tau(weight: Tensor, tau: float) -> Tensor:
    """Rescale the weights of each class to the norm |w|^(1 - tau).

    Frequent classes get weights of larger norm, which favors them. The classifier has no bias.

    Args:
        weight: Weights, (C, F).
        tau: Exponent; 0 changes nothing, 1 makes all norms equal.
    """
    length: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / length.clamp_min(1e-12).pow(tau)


def extract_linear_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract the head from the tensors of a file.

    Args:
        tensors: Tensors of a checkpoint, a model or a head: `head.weight`, `head.bias` and, for an `lws` head, `scale`;
            for a classifier of whitened components those of `head.classifier` and `head.whitening`.

    Returns:
        `weight` (C, F) and `bias` (C,), or an empty dict.
    """
    weight, bias, scale = (tensors.get(name) for name in ("head.weight", "head.bias", "scale"))
    mean, projection = (tensors.get(f"head.whitening.{name}") for name in ("mean", "projection"))
    if mean is not None and projection is not None:
        weight, bias = (tensors.get(f"head.classifier.{name}") for name in ("weight", "bias"))
        if weight is not None and bias is not None:
            weight = weight @ projection.T
            bias = bias - weight @ mean
    if weight is None or bias is None:
        return {}
    return {"weight": weight if scale is None or len(scale) != len(weight) else weight * scale[:, None], "bias": bias}
