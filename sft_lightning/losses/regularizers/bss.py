"""BSS: Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer"."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import ActivationRegularizer
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError, check_min


class BSS(ActivationRegularizer):
    """Sum of the k smallest squared singular values of a batch's features (batch spectral shrinkage).

    It suppresses directions of the features that do not transfer. Reference setting: eta .001, k 1.
    """

    def __init__(self, weight: float = 0.001, k: int = 1) -> None:
        """Check and store the settings.

        Args:
            weight: Weight eta of the penalty.
            k: Number of penalized singular values.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(weight)
        check_min(1, k=k)
        self.k = k

    def build(self, backbone: Encoder) -> None:
        """Refuse a backbone whose features are maps.

        Args:
            backbone: Network from inputs to features.

        Raises:
            InputError: The features are maps.
        """
        super().build(backbone)
        if backbone.new_parts:
            raise InputError(
                "regularizer BSS takes one vector of features for each example, and segmentation has maps: set L2, "
                "L2SP or DELTA"
            )

    def select_modules(self, backbone: Encoder) -> list[nn.Module]:
        """Return the backbone itself, whose output is the features.

        Args:
            backbone: Network from inputs to features.
        """
        return [backbone]

    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Compute R of one pass.

        Args:
            x: Inputs of the backbone, unused.
            outputs: Features, (B, F).
        """
        values: Tensor = torch.linalg.svdvals(outputs[0].float())
        return values[-self.k :].square().sum()
