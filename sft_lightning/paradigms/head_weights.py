"""Pretrained heads, from the file of the backbone's weights or from a separate one.

Rows of a head are matched with classes by name.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.networks.heads import extract_linear_head
from sft_lightning.networks.weights import Tensors, find_weights, read_weights, select_evaluated_weights
from sft_lightning.runs.trained_classes import read_recorded_classes
from sft_lightning.utils.errors import InputError


def take_head(head: nn.Linear, tensors: Tensors, weights: str, class_names: list[str] | None) -> list[str] | None:
    """Copy the head of a weights file for the classes that it has, and log it; other classes start anew.

    Args:
        head: Layer that is changed in place.
        tensors: Tensors of the file that the backbone came from; perhaps without a head.
        weights: Path of the file or run.
        class_names: Names of the classes of the layer; None where they are not known.

    Returns:
        Names of the classes of the layer; those of the file where they were not known and all were taken over.
    """
    old = extract_linear_head(tensors)
    if not old:
        return class_names
    path = find_weights(Path(weights))
    names = read_recorded_classes(read_weights(path)[1], path)
    there, here = tuple(old["weight"].shape), tuple(head.weight.shape)
    if there[1] != here[1] or ((names is None or class_names is None) and there[0] != here[0]):
        rank_zero_info(f"The head of the weights has shape {there} and was replaced by a new one of {here}.")
    elif names is None or len(names) != there[0]:
        rank_zero_info(f"The head of the weights was replaced by a new one: {path} does not name its classes.")
    elif _copy_rows(head, old, names, class_names or names):
        rank_zero_info(f"The head of the weights was taken over, too{_format_difference(names, class_names or names)}.")
        return class_names or names
    else:
        rank_zero_info(
            f"The head of the weights was replaced by a new one: its classes are {format_class_names(names)}, those "
            f"of the data {format_class_names(class_names or names)}."
        )
    return class_names


def attach_head(head: nn.Linear, path: Path, backbone: str, class_names: list[str] | None) -> list[str] | None:
    """Copy a head from a separate file for the classes that it has, and log it; other classes start anew.

    Args:
        head: Layer that is changed in place.
        path: Exported head or model, or run.
        backbone: Name of the network whose features the head takes.
        class_names: Names of the classes of the layer; None where they are not known.

    Returns:
        Names of the classes of the layer; those of the file where they were not known.

    Raises:
        InputError: There is no such file, it holds no head, or the head does not fit.
    """
    file = find_weights(path, "head")
    tensors, metadata = read_weights(file)
    old = extract_linear_head(select_evaluated_weights(tensors))
    if not old:
        raise InputError(f"head_weights {str(path)!r} holds no head: give an exported head or model, or a run")
    classes, features = old["weight"].shape
    if features != head.in_features:
        raise InputError(
            f"head_weights {str(path)!r} takes {features} features, backbone {backbone!r} gives "
            f"{head.in_features}: give a head of a backbone with as many features"
        )
    names = read_recorded_classes(metadata, file)
    if names is not None and len(names) != classes:
        names = None
    if (names is None or class_names is None) and classes != head.out_features:
        raise InputError(
            f"head_weights {str(path)!r} has {classes} classes, the data has {head.out_features}: give a "
            "head of the same classes"
        )
    if names is None and class_names is not None:
        raise InputError(
            f"head_weights {str(path)!r} does not name its classes, so that its rows cannot be matched with those of "
            "the data: give a run, or a head or model that `export` wrote"
        )
    unnamed = [str(i) for i in range(classes)]
    theirs, ours = names or unnamed, class_names or names or unnamed
    if not _copy_rows(head, old, theirs, ours):
        raise InputError(
            f"head_weights {str(path)!r} knows none of the classes of the data: its classes are "
            f"{format_class_names(theirs)}, those of the data {format_class_names(ours)}; give a head of the same "
            "classes"
        )
    trained_on = metadata.get("backbone", backbone)
    other = "" if trained_on == backbone else f" of backbone {trained_on}"
    rank_zero_info(f"The head of {path}{other} is attached{_format_difference(theirs, ours)}.")
    return class_names or names


def _copy_rows(head: nn.Linear, old: Tensors, names: Sequence[str], class_names: Sequence[str]) -> int:
    """Copy the rows of the classes that both heads have, and return their number."""
    rows = torch.tensor(match_classes(class_names, names))
    shared = rows >= 0
    with torch.no_grad():
        head.weight[shared] = old["weight"][rows[shared]].to(head.weight)
        head.bias[shared] = old["bias"][rows[shared]].to(head.bias)
    return int(shared.sum())


def _format_difference(names: Sequence[str], class_names: Sequence[str]) -> str:
    """Return the end of a sentence about classes that only the head or only the data has, or an empty string."""
    new, unused = find_missing_classes(class_names, names), find_missing_classes(names, class_names)
    text = f"; rows of new classes start anew: {format_class_names(new)}" if new else ""
    return text + (f"; rows of other classes are not used: {format_class_names(unused)}" if unused else "")
