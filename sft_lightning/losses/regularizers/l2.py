"""L2: half the squared norm of the parameters."""

from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import Regularizer, half_squared_norm_of_trained


class L2(Regularizer):
    """Half the squared Euclidean norm of all trained parameters.

    Unlike weight decay of an optimizer, it is part of the loss: Adam scales its gradient, and it is logged.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        """Check and store lambda.

        Args:
            weight: Weight lambda of the penalty.
        """
        super().__init__(weight)

    def penalty(self, network: nn.Module) -> Tensor:
        """Compute R.

        Args:
            network: Module with all trained parameters.
        """
        return half_squared_norm_of_trained(network.parameters())
