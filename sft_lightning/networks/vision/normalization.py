"""Normalization of pixels for weights files that do not state it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Stats = float | Sequence[float]


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels.

    Attributes:
        mean: Mean that is subtracted from pixels; one number, or one for each channel.
        std: Standard deviation that divides pixels; one number, or one for each channel.
        source: Origin of the numbers, for a message.
    """

    mean: Stats
    std: Stats
    source: str


_HALVES = Normalization(0.5, 0.5, "torchvision")


def infer_torchvision_normalization(model: str, path: Path | None = None) -> Normalization:
    """Infer the normalization of weights of torchvision from the transforms that it publishes with them.

    Args:
        model: Name of the network in torchvision.
        path: Path of the weights; the entry with the same file name is used, else the default entry.
    """
    from torchvision.models import get_model_weights

    if model in ("googlenet", "inception_v3"):
        # torchvision states ImageNet's normalization and undoes it inside the network (`transform_input`). This is the
        # result, which is stored in checkpoints, while a flag of the network is not.
        return _HALVES
    entries = get_model_weights(model)
    name = path.name if path is not None else ""
    entry = next((e for e in entries if e.url.rpartition("/")[2] == name), entries.DEFAULT)
    transform = entry.transforms()
    return Normalization(tuple(transform.mean), tuple(transform.std), f"torchvision for {entry.name}")


def infer_timm_normalization(config: dict[str, Any], path: Path) -> Normalization:
    """Infer the normalization of a file of timm weights.

    It comes from a `config.json` beside the file, else from the published weights whose tag is in the name of the file
    or of a folder above it, else from the default weights.

    Args:
        config: `pretrained_cfg` of the network.
        path: Path of the file.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    model, where = config.get("architecture", ""), str(path.absolute())
    beside = _read_hub_config(path, model)
    if beside is not None:
        return beside
    published = {name: get_pretrained_cfg(name) for name in list_pretrained(f"{model}.*")}
    for name in sorted(published, key=len, reverse=True):
        chosen = published[name]
        if chosen is not None and (name in where or str(chosen.url).rpartition("/")[2] == path.name):
            return Normalization(chosen.mean, chosen.std, f"timm for {name}")
    stats = Normalization(config.get("mean", 0.0), config.get("std", 1.0), f"timm for {model}")
    others = [n for n, c in published.items() if c is not None and (c.mean, c.std) != (stats.mean, stats.std)]
    if others:
        stats = stats._replace(source=f"{stats.source}; {', '.join(others[:3])} have another")
    return stats


def _read_hub_config(path: Path, model: str) -> Normalization | None:
    """Read the normalization from a config file of the Hugging Face hub beside the weights."""
    for name, keys in (("config.json", ("mean", "std")), ("preprocessor_config.json", ("image_mean", "image_std"))):
        file = path.with_name(name)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content = {**content, **content.get("pretrained_cfg", {})}
            if content.get("architecture", model) != model:
                continue
            mean, std = ([float(v) for v in content[key]] for key in keys)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        return Normalization(mean, std, name)
    return None
