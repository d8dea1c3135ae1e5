"""R(theta): what is added to a loss to keep parameters in check."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


def l2(parameters: Iterable[Parameter]) -> Tensor:
    """Half the squared Euclidean norm of all parameters that are being trained.

    Its gradient is the parameter itself. Unlike an optimizer's weight decay it is part of the loss: Adam scales it,
    and it is logged.

    Args:
        parameters: Those that do not require gradients are left out.

    Returns:
        A scalar.
    """
    norms = torch._foreach_norm([p for p in parameters if p.requires_grad])
    return 0.5 * torch.stack(norms).square().sum()
