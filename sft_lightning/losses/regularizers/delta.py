"""DELTA: Li et al. 2019, "DELTA: Deep Learning Transfer using Feature Map with Attention ..."."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import ActivationRegularizer, StartRegularizer, record_outputs
from sft_lightning.networks.blocks import split_blocks
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.utils.errors import InputError, check_min


class DELTA(StartRegularizer, ActivationRegularizer):
    """alpha/2 |FM - FM_0|^2: feature maps stay near those that the start makes of the same examples.

    A map's squared distance is summed over its positions and averaged over examples and channels, as if all channels
    had the same attention (the paper's version without attention); the head gets beta/2 |w|^2. It costs another pass
    through the backbone, without gradient, in each step.
    """

    def __init__(self, weight: float = 0.01, beta: float = 0.01, layers: int = 4) -> None:
        """Sets both factors.

        Args:
            weight: alpha.
            beta: Of the plain penalty on everything but the backbone.
            layers: So many blocks' maps are compared, evenly from the first to the last.

        Raises:
            InputError: A factor is negative, or there is no layer.
        """
        super().__init__(weight, beta)
        check_min(1, layers=layers)
        self.layers = layers

    def build(self, backbone: Backbone) -> None:
        """Copies the backbone, and makes sure that it has blocks to look at.

        Args:
            backbone: With the weights of the start.

        Raises:
            InputError: It has fewer blocks than are to be compared.
        """
        super().build(backbone)
        found = split_blocks(backbone.net)
        if self.layers > len(found):
            raise InputError(f"layers is {self.layers}: the backbone has {len(found)} blocks to compare, give fewer")
        last = [found[(k + 1) * len(found) // self.layers - 1].modules[-1] for k in range(self.layers)]
        names = {module: name for name, module in backbone.named_modules()}
        self._watched = [names[module] for module in last]  # an adapter may take a layer's place, not its name

    def select_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The last module of every n-th block.

        Args:
            backbone: The network or its start.
        """
        return [backbone.get_submodule(name) for name in self._watched]

    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Half the distance of the maps of one pass.

        Args:
            x: (B, ...).
            outputs: (B, ...) of each watched block.
        """
        with torch.no_grad(), record_outputs(self.source, self.select_modules(self.source)) as passes:
            self.source(x)
        distances = [(a.float() - b.float()).square() for a, b in zip(outputs, passes[0][1], strict=True)]
        return 0.5 * torch.stack([_over_channels(d).mean() for d in distances]).sum()


def _over_channels(distance: Tensor) -> Tensor:
    """(B, C, H, W), (B, T, C) or (B, C) to (B,): a transformer's channels stand last."""
    channels = distance.shape[1] if distance.ndim != 3 else distance.shape[2]
    return distance.flatten(1).sum(1) / channels
