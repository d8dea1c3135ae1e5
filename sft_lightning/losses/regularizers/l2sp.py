"""L2-SP: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks"."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import StartRegularizer, half_squared_norm


class L2SP(StartRegularizer):
    """alpha/2 |w - w_0|^2 of the backbone, whose start is w_0, and beta/2 |w|^2 of what has no start, such as the head.

    Without weights to start from it ties the network to its random initialization.
    """

    def __init__(self, weight: float = 0.1, beta: float = 0.01) -> None:
        """Sets both factors, to the paper's unless given.

        Args:
            weight: alpha.
            beta: Of the plain penalty on everything but the backbone.
        """
        super().__init__(weight, beta)

    def penalty(self, network: nn.Module) -> Tensor:
        """Half the squared distance of the backbone's trained parameters to their start.

        Args:
            network: All that is trained.
        """
        pairs = zip(self._backbone[0].parameters(), self.source.parameters(), strict=True)
        trained = [(p, start) for p, start in pairs if p.requires_grad]
        if not trained:
            return next(network.parameters()).new_zeros(())
        return half_squared_norm(torch._foreach_sub([p for p, _ in trained], [start for _, start in trained]))
