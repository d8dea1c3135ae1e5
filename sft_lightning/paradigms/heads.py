"""Heads that were trained elsewhere: the one that stands beside the backbone's weights, or one of a file of its own."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from sft_lightning.errors import InputError
from sft_lightning.networks.heads import linear_head
from sft_lightning.networks.weights import Tensors, evaluated, find_weights, read_weights


def take_head(head: nn.Linear, tensors: Tensors) -> None:
    """Takes over a head of the same size; says so when it has another.

    Args:
        head: Changed in place.
        tensors: Of the file that the backbone came from; perhaps without a head.
    """
    old = linear_head(tensors)
    if not old:
        return
    if old["weight"].shape == head.weight.shape:
        head.load_state_dict(old)
        rank_zero_info("The head of the weights was taken over, too.")
    else:
        there, here = tuple(old["weight"].shape), tuple(head.weight.shape)
        rank_zero_info(f"The head of the weights has shape {there} and was replaced by a new one of {here}.")


def attach_head(head: nn.Linear, path: Path, backbone: str, class_names: list[str]) -> None:
    """Takes a head from a file of its own, which must fit.

    Args:
        head: Changed in place.
        path: An exported head or model, or a run.
        backbone: Name of that whose features the head takes.
        class_names: Of the data.

    Raises:
        InputError: There is no such file, it holds no head, or the head does not fit.
    """
    tensors, about = read_weights(find_weights(path, "head"))
    old = linear_head(evaluated(tensors))
    if not old:
        raise InputError(f"head_weights {str(path)!r} holds no head: give an exported head or model, or a run")
    classes, features = old["weight"].shape
    if features != head.in_features:
        raise InputError(
            f"head_weights {str(path)!r} takes {features} features, backbone {backbone!r} gives "
            f"{head.in_features}: give a head of a backbone with as many features"
        )
    if classes != head.out_features:
        raise InputError(
            f"head_weights {str(path)!r} tells {classes} classes apart, the data has {head.out_features}: give a "
            "head of the same classes"
        )
    head.load_state_dict(old)
    trained_on = about.get("backbone", backbone)
    other = "" if trained_on == backbone else f" of backbone {trained_on}"
    names = about.get("class_names") or class_names
    renamed = "" if names == class_names else f"; its classes were called {', '.join(names)}"
    rank_zero_info(f"The head of {path}{other} is attached{renamed}.")
