"""How the examples of a modality become what a network sees: as they are, weakly and strongly changed, mixed, shown."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def mix_tensors(x: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Mix each example with a partner, number by number.

    Args:
        x: Floating-point examples, (B, ...).
        order: Positions of the partners, int64 (B,).
        share: Shares of the examples themselves, (B,) in [0, 1].

    Returns:
        Tensor of the shape of `x`.
    """
    return torch.lerp(x[order], x, share.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))


class Views(ABC):
    """The views of a modality, made for a whole batch at once, on its device."""

    @abstractmethod
    def prepare(self, raw: Tensor) -> Tensor:
        """Turn examples as they are stored into what a network sees, without random changes.

        Args:
            raw: Examples as a loader gives them, (B, ...).
        """

    @abstractmethod
    def weak(self, x: Tensor, seed: int | None, number: int = 0) -> Tensor:
        """Change prepared examples a little, keeping their meaning.

        Args:
            x: Prepared examples, (B, ...).
            seed: Seed of the batch; None for no change.
            number: Number of this view among those of the batch, each of which has randomness of its own.
        """

    @abstractmethod
    def strong(self, x: Tensor, seed: int) -> Tensor:
        """Change prepared examples much.

        Args:
            x: Prepared examples, (B, ...).
            seed: Seed of the batch.
        """

    def mix(self, x: Tensor, order: Tensor, share: Tensor) -> Tensor:
        """Mix each example with a partner, as `mix_tensors` does.

        Args:
            x: Examples as a network sees them, (B, ...).
            order: Positions of the partners, int64 (B,).
            share: Shares of the examples themselves, (B,) in [0, 1].
        """
        return mix_tensors(x, order, share)
