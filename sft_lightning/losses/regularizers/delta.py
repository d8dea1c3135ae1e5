"""DELTA: Li et al. 2019, "DELTA: Deep Learning Transfer using Feature Map with Attention ..."."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import ActivationRegularizer, StartRegularizer, record_outputs
from sft_lightning.networks.blocks import split_blocks
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError, check_min


class DELTA(StartRegularizer, ActivationRegularizer):
    """Distance alpha/2 |FM - FM_0|^2 between the feature maps of the network and of its initial copy.

    The squared distance of a map is summed over positions and averaged over examples and channels: all channels have
    the same attention, as in the paper's variant without attention. Parameters outside the backbone get beta/2 |w|^2.
    Each step costs another pass through the backbone, without gradient.

    Reference setting: alpha .01, beta .01, four layers.
    """

    def __init__(self, weight: float = 0.01, beta: float = 0.01, layers: int = 4) -> None:
        """Check and store the settings.

        Args:
            weight: Weight alpha of the distance of the maps.
            beta: Weight of the plain penalty on all parameters outside the backbone.
            layers: Number of blocks whose maps are compared, spread evenly over the backbone.

        Raises:
            InputError: A weight is negative, or `layers` is below 1.
        """
        super().__init__(weight, beta)
        check_min(1, layers=layers)
        self.layers = layers

    def build(self, backbone: Encoder) -> None:
        """Copy the initial backbone and select the blocks to compare.

        Args:
            backbone: Network with the initial weights.

        Raises:
            InputError: The backbone has fewer blocks than `layers`.
        """
        super().build(backbone)
        blocks = split_blocks(backbone.net)
        if self.layers > len(blocks):
            raise InputError(f"layers is {self.layers}: the backbone has {len(blocks)} blocks to compare, give fewer")
        last = [blocks[(k + 1) * len(blocks) // self.layers - 1].modules[-1] for k in range(self.layers)]
        names = {module: name for name, module in backbone.named_modules()}
        self._selected = [names[module] for module in last]  # an adapter replaces a layer but keeps its name

    def select_modules(self, backbone: Encoder) -> list[nn.Module]:
        """Return the last module of each selected block.

        Args:
            backbone: Network or its initial copy.
        """
        return [backbone.get_submodule(name) for name in self._selected]

    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Compute R of one pass.

        Args:
            x: Inputs of the backbone, (B, ...).
            outputs: Outputs of each selected block, (B, ...).
        """
        with torch.no_grad(), record_outputs(self.source, self.select_modules(self.source)) as passes:
            self.source(x)
        distances = [(a.float() - b.float()).square() for a, b in zip(outputs, passes[0][1], strict=True)]
        return 0.5 * torch.stack([_mean_over_channels(d).mean() for d in distances]).sum()


def _mean_over_channels(distance: Tensor) -> Tensor:
    """Reduce (B, C, H, W), (B, T, C) or (B, C) to (B,); channels of a transformer are the last dimension."""
    channels = distance.shape[1] if distance.ndim != 3 else distance.shape[2]
    return distance.flatten(1).sum(1) / channels
