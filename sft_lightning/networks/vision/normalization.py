"""The normalization of pixels that belongs to weights in a file that does not state it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Stats = float | Sequence[float]


class Normalization(NamedTuple):
    """What is subtracted from the pixels, and what divides them.

    Attributes:
        mean: One number, or one for each channel.
        std: One number, or one for each channel.
        source: Whose it is, for a message.
    """

    mean: Stats
    std: Stats
    source: str


_HALVES = Normalization(0.5, 0.5, "torchvision")


def infer_torchvision_normalization(model: str, path: Path | None = None) -> Normalization:
    """Return the normalization that torchvision publishes beside its weights.

    Args:
        model: Name in torchvision.
        path: Weights, of which the entry with the same file name is taken; None or another name for the default entry.
    """
    from torchvision.models import get_model_weights

    if model in ("googlenet", "inception_v3"):
        # torchvision states ImageNet's and then undoes it inside the network (`transform_input`): what comes out is
        # this one, which travels with a checkpoint, as a flag of the network would not.
        return _HALVES
    entries = get_model_weights(model)
    name = path.name if path is not None else ""
    entry = next((e for e in entries if e.url.rpartition("/")[2] == name), entries.DEFAULT)
    transform = entry.transforms()
    return Normalization(tuple(transform.mean), tuple(transform.std), f"torchvision for {entry.name}")


def infer_timm_normalization(config: dict[str, Any], path: Path) -> Normalization:
    """Return the normalization of the published weights that a file most likely is.

    A `config.json` beside the file says it; else the name of the file or of a folder above it may hold the tag of
    published weights; else it is that of the default weights.

    Args:
        config: `pretrained_cfg` of the network.
        path: The file.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    model, where = config.get("architecture", ""), str(path.absolute())
    beside = _read_beside(path, model)
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


def _read_beside(path: Path, model: str) -> Normalization | None:
    """Read the files that the Hugging Face hub keeps beside the weights of a model."""
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
