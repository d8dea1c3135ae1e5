"""L2-SP: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks"."""

import torch
from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import StartRegularizer, half_squared_norm, list_started


class L2SP(StartRegularizer):
    """Distance alpha/2 |w - w_0|^2 of the backbone from its initial weights, and beta/2 |w|^2 of all other parameters.

    Without pre-trained weights, it ties the network to its random initialization.

    Reference setting: alpha .1, beta .01.
    """

    def __init__(self, weight: float = 0.1, beta: float = 0.01) -> None:
        """Check and store both weights; the defaults are the paper's.

        Args:
            weight: Weight alpha of the distance from the initial weights.
            beta: Weight of the plain penalty on all parameters outside the backbone.
        """
        super().__init__(weight, beta)

    def penalty(self, network: nn.Module) -> Tensor:
        """Compute half the squared distance of the backbone's trained parameters from their initial values.

        Args:
            network: Module with all trained parameters.
        """
        pairs = zip(list_started(self._backbone[0]), list_started(self.source), strict=True)
        trained = [(p, initial) for p, initial in pairs if p.requires_grad]
        if not trained:
            return next(network.parameters()).new_zeros(())
        return half_squared_norm(torch._foreach_sub([p for p, _ in trained], [initial for _, initial in trained]))
