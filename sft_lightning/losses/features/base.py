"""The interface of L_f, a loss that trains features with labels but without a classifier."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.utils.renamed import refuse_renamed


class FeatureLoss(nn.Module, ABC):
    """Base class of losses that pull the features of a class together.

    Attributes:
        separates_classes: Whether the loss also keeps classes apart. One that does not is minimal when all features
            coincide, so it needs a classifier's loss beside it (`coupling: joint`).
    """

    separates_classes: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse former names of hooks."""
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, separates="separates_classes")

    def build(self, num_classes: int, num_features: int) -> None:
        """Create buffers and parameters; called once, before training.

        Args:
            num_classes: Number of classes C.
            num_features: Number of features F.
        """

    def _apply(self, *args: Any, **kwargs: Any) -> "FeatureLoss":
        """Keep the loss in full precision when the network is converted to half precision."""
        super()._apply(*args, **kwargs)
        if any(t.is_floating_point() and t.dtype.itemsize < 4 for t in (*self.parameters(), *self.buffers())):
            super()._apply(lambda t: t.float() if t.is_floating_point() else t)
        return self

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch in full precision, since angles and running means are coarse in half precision.

        Args:
            features: Features with gradient, (B, F).
            labels: Classes, int64, (B,).

        Returns:
            Scalar whose mean over processes with batches of equal size is the loss of all their examples.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float() if features.dtype.itemsize < 4 else features, labels)

    @abstractmethod
    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            features: Features with gradient in float32 or float64, (B, F).
            labels: Classes, int64, (B,).
        """
