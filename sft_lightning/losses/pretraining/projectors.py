"""Projectors and predictors: the small fully connected networks between the features and an objective."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def build_projector(
    sizes: Sequence[int],
    hidden_norm: bool = True,
    output_norm: Literal["none", "plain"] = "none",
    bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build a fully connected network with an activation after each layer but the last.

    Args:
        sizes: Number of inputs, then of outputs of each layer.
        hidden_norm: Whether batch normalization follows each layer but the last; these layers then have no bias.
        output_norm: `plain` for batch normalization without learned scale and shift after the last layer, which then
            has no bias, or `none`.
        bias: Whether the last layer has a bias.
        activation: Class of the activation.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers.append(nn.Linear(a, b, bias=not hidden_norm))
        layers += [nn.BatchNorm1d(b), activation()] if hidden_norm else [activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=bias and output_norm == "none"))
    if output_norm == "plain":
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)
