"""Prototypes: learned directions over which DINO and SwAV distribute projections, and how many of them are in use."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Cosines of projections and learned directions, in full precision, since a low temperature scales them up.

    Attributes:
        is_frozen: Whether the directions get no gradient.
    """

    def __init__(self, num_inputs: int, count: int) -> None:
        """Draw directions, uniform on the sphere.

        Args:
            num_inputs: Number of outputs of the projector.
            count: Number of directions.
        """
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, num_inputs), dim=1))
        self.is_frozen = False

    def forward(self, z: Tensor) -> Tensor:
        """Compute the cosines, (B, count).

        Args:
            z: Projections, (B, num_inputs).
        """
        with torch.autocast(z.device.type, enabled=False):
            weight: Tensor = self.weight
            if self.is_frozen:  # a gradient of zero, since DDP waits for one of each parameter
                weight = weight.detach() + 0 * weight
            return F.linear(F.normalize(z.to(weight.dtype), dim=1), F.normalize(weight, dim=1))


def compute_entropy(p: Tensor) -> Tensor:
    """Compute the entropy of distributions in nats.

    Args:
        p: Probabilities, (..., K).
    """
    return -torch.xlogy(p, p).sum(-1)


def count_used(mean: Tensor) -> Tensor:
    """Count the prototypes in use: the exponential of the entropy of their mean use, 1 if all examples choose the same.

    Args:
        mean: Mean of the distributions of many examples, (K,).
    """
    return compute_entropy(mean).exp()
