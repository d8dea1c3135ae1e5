"""Choice of the network in a weights file with several: nested files, wrappers, students beside teachers."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sft_lightning.utils.errors import InputError

_TRAINER_STATE = re.compile(r"optim|sched|scaler|amp|loops|callbacks|rng|args|config|hyper_parameters", re.IGNORECASE)
_LIGHTNING = ("pytorch-lightning_version", "hyper_parameters", "global_step")
_DEPTH = 4  # of nested mappings; {"model": {"state_dict": {...}}} has depth two
_RIVAL_SHARE = 0.9  # of the best network's matching tensors: others from here on are candidates, too
_AVERAGES = {"teacher", "ema", "averaged", "average", "avg", "swa", "shadow"}
_FOLLOWERS = {"student", "momentum", "k", "key"}


def flatten_networks(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name.

    With one nested state dict (`state_dict`, `model`, `net`, `params`, ...), names are those in it; with several, names
    get the key of their state dict as a prefix. States of optimizers and the like are left out.

    Args:
        content: Content of the checkpoint.
    """
    if isinstance(content.get("state_dict"), Mapping) and any(key in content for key in _LIGHTNING):
        return _flatten(content["state_dict"], _DEPTH)
    return _flatten(content, _DEPTH)


def _flatten(content: Mapping[Any, Any], depth: int) -> dict[str, Tensor]:
    direct = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    nested: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and depth and not _TRAINER_STATE.search(str(name)):
            tensors = _flatten(value, depth - 1)
            if tensors:
                nested[str(name)] = tensors
    if len(nested) == 1:
        (only,) = nested.values()
        if len(only) >= len(direct):  # the tensors beside it are a score or a queue
            return only
    return {**direct, **{f"{key}.{name}": tensor for key, inner in nested.items() for name, tensor in inner.items()}}


def choose_network(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> tuple[str, list[str]]:
    """Choose the prefix under which a file's tensors match a network.

    Of several networks that match about equally well, the one that publishers of such files evaluate wins: a teacher or
    an average over the student, a query encoder over the key encoder that follows it.

    Args:
        own: State dict of the network.
        tensors: Tensors of the file by name.
        source: Name of the file for the error.

    Returns:
        The prefix, and the prefixes of other matching networks in the file.

    Raises:
        InputError: Several networks match, and their names do not decide between them.
    """
    names = [name for name in tensors if name.rpartition(".")[2] in {n.rpartition(".")[2] for n in own}]
    # A dict and not a set, whose order would change with PYTHONHASHSEED.
    prefixes = dict.fromkeys(["", *(name[: end.end()] for name in names for end in re.finditer(r"\.", name))])
    counts = {p: sum(_fits(tensors.get(p + n), t) for n, t in own.items()) for p in prefixes}
    best = max(counts.values())
    rivals = sorted(
        (p for p, n in counts.items() if n and n >= _RIVAL_SHARE * best), key=lambda p: (-counts[p], len(p), p)
    )
    if len(rivals) < 2:
        return (rivals or [""])[0], []
    ranks = {p: _rank(p, rivals) for p in rivals}
    first, *ties = [p for p in rivals if ranks[p] == min(ranks.values())]
    different = [p for p in ties if not _are_equal(own, tensors, first, p)]
    if different:
        among = ", ".join(repr(p.rstrip(".") or "the names without a prefix") for p in [first, *different])
        raise InputError(
            f"weights {source!r} hold several networks that fit the backbone, under {among}: save the one that you "
            "mean in a file of its own"
        )
    return first, [p for p in rivals if p != first and p not in ties]


def _fits(tensor: Tensor | None, own: Tensor) -> bool:
    return tensor is not None and tensor.shape == own.shape


def _are_equal(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    """Return whether two prefixes have the same tensors, such as those of a module that is registered twice."""
    pairs = [(tensors.get(one + n), tensors.get(other + n)) for n in own]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _rank(prefix: str, rivals: list[str]) -> int:
    """Return 0 for a network that publishers evaluate, 2 for one that only helps to train it, else 1."""
    words = set(re.split(r"[._]", prefix.lower()))
    if "target" in words:  # follows the online network in BYOL, but is evaluated in I-JEPA
        return 2 if any("online" in re.split(r"[._]", p.lower()) for p in rivals) else 0
    if words & _AVERAGES:
        return 0
    return 2 if words & _FOLLOWERS else 1
