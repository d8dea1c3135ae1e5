"""A trained network apart from its run: what every other use of it begins with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft_lightning._version import __version__
from sft_lightning.networks.heads import extract_linear_head, normalize_tau
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.networks.weights import Tensors, check_model_settings, read_weights, select_evaluated_weights
from sft_lightning.runs.lineage import find_run, read_chain, read_data_digest
from sft_lightning.runs.trained_classes import read_recorded_classes
from sft_lightning.utils.errors import InputError


@dataclass
class TrainedNetwork:
    """A trained network apart from its run.

    Attributes:
        backbone: Tensors under the names of `Backbone` (`net....`, `mean`, `std`).
        head: `weight` (C, F) and `bias` (C,) of a linear layer, or nothing.
        metadata: What a part says of itself.
    """

    backbone: Tensors
    head: Tensors
    metadata: dict[str, Any]

    def network(self) -> Backbone:
        """The backbone with its weights, in eval mode."""
        made, _ = build_backbone(self.metadata["backbone"], self.metadata["image_shape"])
        try:
            made.load_state_dict(self.backbone)
        except RuntimeError as error:  # torch lists each tensor on a line of its own
            raise InputError(
                f"the weights of backbone {made.name!r} have not its shape (at {str(error).splitlines()[-1].strip()}): "
                "give a checkpoint that `fit` wrote"
            ) from error
        return made.eval()


def load_trained_network(path: Path) -> TrainedNetwork:
    """Reads a checkpoint of any paradigm; averaged weights where there are some, the head as one linear layer.

    Args:
        path: A checkpoint.

    Raises:
        InputError: It is not one of ours.
    """
    tensors, told = read_weights(path)
    settings = check_model_settings(told, path)
    name = settings.get("backbone", settings.get("network"))
    prefix = "encoder." if "network" in settings else "backbone."
    needed = {"image_shape", *(["tau"] if settings.get("head") == "tau_normalized" else [])}
    whole = {f"{prefix}mean", f"{prefix}std"} <= tensors.keys() and any(n.startswith(f"{prefix}net.") for n in tensors)
    if name is None or not needed <= settings.keys() or not whole:
        raise InputError(f"checkpoint {str(path)!r} is of no paradigm of this package: give one that `fit` wrote")
    tensors = select_evaluated_weights(tensors)
    backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    head = extract_linear_head(tensors)
    if head and settings.get("head") == "tau_normalized":
        head = {"weight": normalize_tau(head["weight"], settings["tau"]), "bias": torch.zeros_like(head["bias"])}
    about: dict[str, Any] = {
        "backbone": name,
        "image_shape": list(settings["image_shape"]),
        "mean": backbone["mean"].flatten().tolist(),
        "std": backbone["std"].flatten().tolist(),
        "class_names": read_recorded_classes(told, path) or [],
        "made_by": str(settings.get("_class_path", "")).rpartition(".")[2] or None,
        "step": told.get("global_step"),
        "version": __version__,
    }
    ranges = told.get("ImageDataModule", {}).get("value_ranges")
    if ranges:
        about["value_ranges"] = ranges
    if head:
        about["num_features"] = head["weight"].shape[1]
    run = find_run(path)
    if run is not None:
        about.update({"run": str(run), "data_sha256": read_data_digest(run), "chain": read_chain(run)})
    return TrainedNetwork(backbone, head, about)
