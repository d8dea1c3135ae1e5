"""Parts of a trained model as files of their own: the backbone, the head, or both; safetensors with JSON beside.

The JSON (also inside the safetensors) says what is needed to use the part elsewhere: architecture, input size,
normalization, classes, and where it came from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sft_lightning import __version__
from sft_lightning.errors import InputError, shares
from sft_lightning.files import write_json
from sft_lightning.lineage import chain_of, data_digest, run_of
from sft_lightning.networks.heads import linear_head, tau_normalized
from sft_lightning.networks.weights import Tensors, evaluated, find_weights, read_weights, write_weights
from sft_lightning.runs import find_checkpoint

Kind = Literal["backbone", "head", "model"]


@dataclass
class Trained:
    """A trained network apart from its run.

    Attributes:
        backbone: Tensors under the names of `Backbone` (`net....`, `mean`, `std`).
        head: `weight` (C, F) and `bias` (C,) of a linear layer, or nothing.
        about: What a part says of itself.
    """

    backbone: Tensors
    head: Tensors
    about: dict[str, Any]


def read_trained(path: Path) -> Trained:
    """Reads a checkpoint of any paradigm; averaged weights where there are some, the head as one linear layer.

    Args:
        path: A checkpoint.

    Raises:
        InputError: It is not one of ours.
    """
    tensors, told = read_weights(path)
    settings = told.get("hyper_parameters", {})
    name = settings.get("backbone", settings.get("network"))
    prefix = "encoder." if "network" in settings else "backbone."
    if name is None or not any(n.startswith(f"{prefix}net.") for n in tensors):
        raise InputError(f"checkpoint {str(path)!r} is of no paradigm of this package: give one that `fit` wrote")
    tensors = evaluated(tensors)
    backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    head = linear_head(tensors)
    if head and settings.get("head") == "tau_normalized":
        head = {"weight": tau_normalized(head["weight"], settings["tau"]), "bias": torch.zeros_like(head["bias"])}
    about: dict[str, Any] = {
        "backbone": name,
        "image_shape": list(settings["image_shape"]),
        "mean": backbone["mean"].flatten().tolist(),
        "std": backbone["std"].flatten().tolist(),
        "class_names": list(settings.get("class_names") or []),
        "made_by": str(settings.get("_class_path", "")).rpartition(".")[2] or None,
        "step": told.get("global_step"),
        "version": __version__,
    }
    if head:
        about["num_features"] = head["weight"].shape[1]
    run = run_of(path)
    if run is not None:
        about.update({"run": str(run), "data_sha256": data_digest(run), "chain": chain_of(run)})
    return Trained(backbone, head, about)


def export(
    run: str, part: Kind = "model", format: Literal["safetensors"] = "safetensors", out: str | None = None,
    wise: float = 1.0,
) -> Path:  # fmt: skip
    """Writes a part of a trained model, and a JSON of the same name beside it.

    Args:
        run: Folder of a run (its last checkpoint), or a checkpoint.
        part: `backbone`, `head` or `model`, which is both.
        format: Of the file.
        out: The file; null for PART.safetensors in the run's folder.
        wise: alpha of WiSE-FT: weights (1 - alpha) * start + alpha * tuned, the start being what the run started from.

    Returns:
        The file.

    Raises:
        InputError: There is no such run or part.
    """
    try:
        checkpoint = find_checkpoint(run, Path("."))
    except InputError as error:
        raise InputError(str(error).replace("ckpt_path", "run", 1)) from error
    trained = read_trained(checkpoint)
    if part != "backbone" and not trained.head:
        raise InputError(f"run {run!r} ({trained.about['made_by']}) has no head: give --part backbone")
    shares(wise=wise)
    if wise < 1:
        _interpolate(trained, wise, run)
    tensors = {
        "backbone": trained.backbone,
        "head": {f"head.{n}": t for n, t in trained.head.items()},
        "model": {
            **{f"backbone.{n}": t for n, t in trained.backbone.items()},
            **{f"head.{n}": t for n, t in trained.head.items()},
        },
    }[part]
    file = Path(out) if out is not None else (run_of(checkpoint) or checkpoint.parent) / f"{part}.{format}"
    if file.suffix != f".{format}":
        raise InputError(f"out {str(file)!r} does not end in .{format}: give a name that does")
    about = {"part": part, **trained.about}
    write_weights(file, tensors, about)
    write_json(file.with_suffix(".json"), about)
    return file


def _interpolate(trained: Trained, alpha: float, run: str) -> None:
    """Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models": between the start and what became of it."""
    chain = trained.about.get("chain") or [{}]
    source = chain[-1].get("weights")
    if source in (None, "none", "default") or not Path(source).exists():
        raise InputError(
            f"wise is {alpha}, but run {run!r} has no start on disk (its weights are {source!r}): give wise: 1, or a "
            "run that started from a file"
        )
    start, _ = read_weights(find_weights(Path(source)))
    start = evaluated(start)
    prefix = max(
        {"", *(n[: n.index("net.")] for n in start if "net." in n)},
        key=lambda p: sum(p + n in start for n in trained.backbone),
    )
    mixed = 0
    for name, tuned in trained.backbone.items():
        before = start.get(prefix + name)
        if before is not None and before.shape == tuned.shape and tuned.is_floating_point():
            trained.backbone[name] = torch.lerp(before.to(tuned), tuned, alpha)
            mixed += 1
    if not mixed:
        raise InputError(f"wise is {alpha}, but the start {source!r} has no tensor of the run: it changed since")
    for name, tuned in trained.head.items():  # a new head has no start, and is kept
        before = start.get(f"head.{name}")
        if before is not None and before.shape == tuned.shape:
            trained.head[name] = torch.lerp(before.to(tuned), tuned, alpha)
    trained.about["wise"] = alpha
