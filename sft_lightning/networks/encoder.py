"""What a network without its head looks like to paradigms, losses and adapters, whatever goes in."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A network from the inputs of one modality to features.

    Attributes:
        modality: Kind of its inputs, such as `image`.
        name: Name as the user wrote it, by which it is built again.
        net: The network itself, whose blocks are frozen, released and adapted.
        num_features: Number F of features of an example.
    """

    modality: ClassVar[str]
    name: str
    net: nn.Module
    num_features: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute features, (B, F).

        Args:
            x: Inputs as the modality's views give them, (B, ...).
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the primitives from which the encoder is built again, without its weights."""

    @abstractmethod
    def make_example(self) -> Tensor:
        """Return inputs of one example, all zeros, to see which layers a pass goes through, (1, ...)."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device
