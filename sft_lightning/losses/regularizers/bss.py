"""Batch spectral shrinkage: Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer"."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import ActivationRegularizer
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.utils.errors import check_min


class BSS(ActivationRegularizer):
    """The sum of the k smallest squared singular values of a batch's features: directions that do not transfer fade."""

    def __init__(self, weight: float = 0.001, k: int = 1) -> None:
        """Sets both.

        Args:
            weight: eta.
            k: How many of the smallest singular values are penalized.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__(weight)
        check_min(1, k=k)
        self.k = k

    def select_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The features.

        Args:
            backbone: From examples to features.
        """
        return [backbone]

    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Of a batch's features.

        Args:
            x: Not used.
            outputs: Features (B, F).
        """
        values: Tensor = torch.linalg.svdvals(outputs[0].float())
        return values[-self.k :].square().sum()
