"""1 - cos(f(x), p_y): features point where the prototype of their class does."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import InputError, check_decay


class CosinePrototype(FeatureLoss):
    """The reference's L_f. A label has no direction, so each class has a prototype p_c that has one.

    `learnable`: vectors that gradient descent moves with the network. `mean`: the running mean of the class's unit
    features. `simplex`: fixed, all pairs at the same widest angle, cos = -1 / (C - 1), the equiangular tight frame that
    Papyan, Han & Donoho 2020 ("neural collapse") find at the end of training and Yang et al. 2022 fix from the start.
    Only the last keeps classes apart.
    """

    prototypes: Tensor
    seen: Tensor

    def __init__(
        self, prototypes: Literal["learnable", "mean", "simplex"] = "learnable", momentum: float = 0.9, seed: int = 0
    ) -> None:
        """Chooses the prototypes.

        Args:
            prototypes: Which.
            momentum: Of the running mean.
            seed: Of the first prototypes, or of the simplex's orientation.

        Raises:
            InputError: momentum is out of its range.
        """
        super().__init__()
        check_decay(momentum=momentum)
        self.kind, self.momentum, self.seed = prototypes, momentum, seed
        self.separates_classes = prototypes == "simplex"  # type: ignore[misc]

    def build(self, num_classes: int, num_features: int) -> None:
        """The prototypes, (C, F), of length 1.

        Args:
            num_classes: C.
            num_features: F.

        Raises:
            InputError: A simplex of so many corners needs more features.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if self.kind == "simplex":
            self.register_buffer("prototypes", build_simplex(num_classes, num_features, generator))
            return
        first = F.normalize(torch.randn(num_classes, num_features, generator=generator), dim=1)
        if self.kind == "learnable":
            self.prototypes = nn.Parameter(first)
        else:
            self.register_buffer("prototypes", first)
            self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch; running means move first, so that a class's first batch has one.

        Args:
            features: (B, F).
            labels: int64, (B,).
        """
        unit = F.normalize(features, dim=1)
        if self.kind == "mean" and self.training:
            self._follow(unit.detach(), labels)
        return 1 - (unit * F.normalize(self.prototypes, dim=1)[labels]).sum(1).mean()

    def _follow(self, unit: Tensor, labels: Tensor) -> None:
        hot = F.one_hot(labels, len(self.prototypes)).to(unit)
        sums, counts = sum_over_ranks(hot.T @ unit), sum_over_ranks(hot.sum(0))
        here = counts > 0
        mean = sums / counts.clamp_min(1)[:, None]
        kept = torch.where(self.seen, self.momentum, 0.0)[:, None].to(unit)
        moved = kept * self.prototypes + (1 - kept) * mean
        self.prototypes.copy_(torch.where(here[:, None], moved, self.prototypes))
        self.seen |= here


def build_simplex(corners: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Unit vectors with the same angle between all pairs, arccos(-1 / (C - 1)), in a random orientation.

    Args:
        corners: C, at least 2.
        dimensions: F, at least C - 1.
        generator: Of the orientation.

    Returns:
        float32, (C, F).

    Raises:
        InputError: F is too small.
    """
    if dimensions < corners - 1:
        raise InputError(
            f"prototypes is 'simplex', but {corners} classes need {corners - 1} features and the backbone has "
            f"{dimensions}: use learnable or mean prototypes, or a wider backbone"
        )
    centered = torch.eye(corners, dtype=torch.float64) - 1 / corners
    plane = torch.linalg.qr(centered[:, :-1])[0]  # (C, C - 1): an orthonormal basis of what is orthogonal to ones
    turned = torch.linalg.qr(torch.randn(dimensions, corners - 1, generator=generator, dtype=torch.float64))[0]
    made: Tensor = math.sqrt(corners / (corners - 1)) * plane @ turned.T
    return made.float()
