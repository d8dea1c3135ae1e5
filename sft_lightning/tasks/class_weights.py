"""Weights of the classes in the loss, by name or by position."""

import math
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.utils.errors import InputError


def order_weights(
    given: Literal["balanced"] | list[float] | dict[str, float] | None, names: list[str] | None, num_classes: int
) -> Tensor:
    """Return the weights in the order of the classes, and log which class has which where they came by position.

    Args:
        given: The setting: weights by name or by position, or any other value, for which all weights are 1.
        names: Names of the classes; None where they are not known.
        num_classes: Number of classes.

    Returns:
        float32, (num_classes,).

    Raises:
        InputError: A class has no weight, or a weight no class.
    """
    listed = given.items() if isinstance(given, dict) else enumerate(given if isinstance(given, list) else [])
    for key, value in listed:
        if not 0 < value < math.inf:  # a batch whose weights are all 0 has no mean
            raise InputError(f"class_weights[{key}] is {value}: give a number above 0")
    if isinstance(given, dict):
        given = {str(name): weight for name, weight in given.items()}  # YAML reads 1 as a number
        unknown, missing = find_missing_classes([*given], names or []), find_missing_classes(names or [], [*given])
        if unknown or missing:
            raise InputError(
                f"class_weights names the classes {format_class_names([*given])}, the data has "
                f"{format_class_names(names or [])}: give each class a weight"
            )
        numbers = [*given.values()]
        return torch.tensor([numbers[i] for i in match_classes(names or [], [*given])]).float()
    if not isinstance(given, list):
        return torch.ones(num_classes)
    if len(given) != num_classes:
        raise InputError(f"class_weights has {len(given)} numbers for {num_classes} classes: give one each")
    if names:
        shown = ", ".join(f"{name!r} {value:g}" for name, value in zip(names[:10], given, strict=False))
        rank_zero_info(f"Class weights by position: {shown}{', ...' if num_classes > 10 else ''}.")
    return torch.tensor(given).float()
