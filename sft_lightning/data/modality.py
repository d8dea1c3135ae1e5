"""Interface of the views of a modality: unaugmented, weak, strong and mixed network inputs."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def mix_tensors(x: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Mix each example with a partner, element by element.

    Args:
        x: Floating-point examples, (B, ...).
        order: Positions of the partners, int64 (B,).
        share: Shares of the examples themselves, (B,) in [0, 1].

    Returns:
        Tensor of the shape of `x`.
    """
    return torch.lerp(x[order], x, share.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))


class Views(ABC):
    """Views of a modality, made for a batch at once, on its device."""

    @abstractmethod
    def prepare(self, raw: Tensor) -> Tensor:
        """Convert stored examples to network inputs, without random changes.

        Args:
            raw: Examples from a loader, (B, ...).
        """

    @abstractmethod
    def weak(self, x: Tensor, seed: int | None, number: int = 0) -> Tensor:
        """Change prepared examples slightly, keeping their class.

        Args:
            x: Prepared examples, (B, ...).
            seed: Seed of the batch; None for no change.
            number: Number of this view in the batch; each has its own random stream.
        """

    @abstractmethod
    def strong(self, x: Tensor, seed: int) -> Tensor:
        """Change prepared examples strongly.

        Args:
            x: Prepared examples, (B, ...).
            seed: Seed of the batch.
        """

    def mix(self, x: Tensor, order: Tensor, share: Tensor) -> Tensor:
        """Mix each example with a partner, as `mix_tensors` does.

        Args:
            x: Network inputs, (B, ...).
            order: Positions of the partners, int64 (B,).
            share: Shares of the examples themselves, (B,) in [0, 1].
        """
        return mix_tensors(x, order, share)
