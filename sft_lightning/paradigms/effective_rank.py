"""Effective rank of features, by which a collapse shows without labels."""

import torch
from torch import Tensor

_EPSILON = 1e-7  # added to each share, as in the paper


@torch.no_grad()
def compute_effective_rank(features: Tensor) -> Tensor:
    """Compute RankMe: the exponential of the entropy of the normalized singular values (Garrido et al. 2023, eq. 1).

    It is 1 where all features are multiples of one vector, and at most the smaller of N and F.

    Args:
        features: Features, (N, F), of any floating type.

    Returns:
        Tensor without dimensions on the CPU.
    """
    x = features.detach().cpu().double().nan_to_num()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(1e-300) + _EPSILON
    return (-(share * share.log()).sum()).exp().float()
