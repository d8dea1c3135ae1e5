"""L_f: what a feature extractor learns from labels without a classifier. The interface; each loss has a file."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class FeatureLoss(nn.Module, ABC):
    """Draws features of one class together.

    Attributes:
        separates_classes: Whether the loss also keeps classes apart. One that does not is minimal when all features
            coincide, so it needs a classifier's loss beside it (`coupling: joint`).
    """

    separates_classes: ClassVar[bool] = True

    def build(self, num_classes: int, num_features: int) -> None:
        """Makes buffers and parameters, once, before training.

        Args:
            num_classes: C.
            num_features: F.
        """

    def _apply(self, *args: Any, **kwargs: Any) -> "FeatureLoss":
        """Stays in full precision where the network is in half of it."""
        super()._apply(*args, **kwargs)
        if any(t.is_floating_point() and t.dtype.itemsize < 4 for t in (*self.parameters(), *self.buffers())):
            super()._apply(lambda t: t.float() if t.is_floating_point() else t)
        return self

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch, in full precision: angles and running means would be coarse in half of it.

        Args:
            features: (B, F), with gradient.
            labels: int64, (B,).

        Returns:
            A scalar; its mean over processes of equal batches is the loss of all their examples.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float() if features.dtype.itemsize < 4 else features, labels)

    @abstractmethod
    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """As `forward`.

        Args:
            features: (B, F), float32 or float64.
            labels: int64, (B,).
        """
