"""The plain penalty on the length of the parameters."""

from torch import Tensor, nn

from sft_lightning.losses.regularizers.base import Regularizer, half_squared_norm_of_trained


class L2(Regularizer):
    """Half the squared Euclidean norm of all parameters that are being trained.

    Unlike an optimizer's weight decay it is part of the loss: Adam scales its gradient, and it is logged.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        """Sets lambda.

        Args:
            weight: lambda.
        """
        super().__init__(weight)

    def penalty(self, network: nn.Module) -> Tensor:
        """R.

        Args:
            network: All that is trained.
        """
        return half_squared_norm_of_trained(network.parameters())
