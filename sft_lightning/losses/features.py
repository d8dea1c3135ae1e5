"""L_f: what a feature extractor learns from labels without a classifier. The interface; each loss has a file."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class FeatureLoss(nn.Module, ABC):
    """Draws features of one class together.

    Attributes:
        separates: Whether it also keeps classes apart. One that does not is least where all features are one point, so
            it needs a classifier's loss beside it (`joint`).
    """

    separates: ClassVar[bool] = True

    def build(self, num_classes: int, num_features: int) -> None:
        """Makes buffers and parameters, once, before training.

        Args:
            num_classes: C.
            num_features: F.
        """

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            features: (B, F), with gradient.
            labels: int64, (B,).

        Returns:
            A scalar; its mean over processes of equal batches is the loss of all their examples.
        """
