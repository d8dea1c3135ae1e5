"""Cosine loss to class prototypes: L_f = 1 - cos(f(x), p_y)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import InputError, check_decay


class CosinePrototype(FeatureLoss):
    """Cosine distance between features and the prototype p_y of their class, averaged over the batch.

    A label is an integer without a direction, so each class has a prototype. `learnable` prototypes are parameters.
    `mean` prototypes are running means of the normalized features of a class. `simplex` prototypes are fixed, with the
    same widest angle between all pairs, cos = -1 / (C - 1): the equiangular tight frame that Papyan, Han & Donoho 2020
    ("neural collapse") observe at the end of training and Yang et al. 2022 fix from the start. Only `simplex` keeps
    classes apart.

    Reference setting: ResNet-50 features (2048), Linear(2048, C) as the classifier, SGD with rate .01.
    """

    prototypes: Tensor
    seen: Tensor  # whether a class has had an example; the name stands in checkpoints

    def __init__(
        self, prototypes: Literal["learnable", "mean", "simplex"] = "learnable", momentum: float = 0.9, seed: int = 0
    ) -> None:
        """Check and store the settings.

        Args:
            prototypes: Kind of prototypes.
            momentum: Momentum of the running means of `mean`.
            seed: Seed of the initial prototypes, or of the orientation of the simplex.

        Raises:
            InputError: The momentum is out of range.
        """
        super().__init__()
        check_decay(momentum=momentum)
        self.kind, self.momentum, self.seed = prototypes, momentum, seed
        self.separates_classes = prototypes == "simplex"  # type: ignore[misc]

    def build(self, num_classes: int, num_features: int) -> None:
        """Create the prototypes, (C, F), with norm 1.

        Args:
            num_classes: Number of classes C.
            num_features: Number of features F.

        Raises:
            InputError: A simplex of C corners needs more than F dimensions.
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
        """Compute the loss; running means move first, so that the first batch of a class has a prototype.

        Args:
            features: Features with gradient, (B, F).
            labels: Classes, int64, (B,).
        """
        unit = F.normalize(features, dim=1)
        if self.kind == "mean" and self.training:
            self._update_means(unit.detach(), labels)
        return 1 - (unit * F.normalize(self.prototypes, dim=1)[labels]).sum(1).mean()

    def _update_means(self, unit: Tensor, labels: Tensor) -> None:
        one_hot = F.one_hot(labels, len(self.prototypes)).to(unit)
        sums, counts = sum_over_ranks(one_hot.T @ unit), sum_over_ranks(one_hot.sum(0))
        is_present = counts > 0
        mean = sums / counts.clamp_min(1)[:, None]
        decay = torch.where(self.seen, self.momentum, 0.0)[:, None].to(unit)
        updated = decay * self.prototypes + (1 - decay) * mean
        self.prototypes.copy_(torch.where(is_present[:, None], updated, self.prototypes))
        self.seen |= is_present


def build_simplex(corners: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Build unit vectors with the same angle arccos(-1 / (C - 1)) between all pairs, in a random orientation.

    Args:
        corners: Number of vectors C, at least 2.
        dimensions: Number of dimensions F, at least C - 1.
        generator: Generator of the orientation.

    Returns:
        Vectors in float32, (C, F).

    Raises:
        InputError: F is too small.
    """
    if dimensions < corners - 1:
        raise InputError(
            f"prototypes is 'simplex', but {corners} classes need {corners - 1} features and the backbone has "
            f"{dimensions}: use learnable or mean prototypes, or a wider backbone"
        )
    centered = torch.eye(corners, dtype=torch.float64) - 1 / corners
    plane = torch.linalg.qr(centered[:, :-1])[0]  # (C, C - 1): an orthonormal basis of the complement of ones
    rotation = torch.linalg.qr(torch.randn(dimensions, corners - 1, generator=generator, dtype=torch.float64))[0]
    vectors: Tensor = math.sqrt(corners / (corners - 1)) * plane @ rotation.T
    return vectors.float()
