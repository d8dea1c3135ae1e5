"""A trained network apart from its run, from which every other use of it begins."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft_lightning._version import __version__
from sft_lightning.networks.build import build_encoder, use_files_of
from sft_lightning.networks.encoder import Encoder, describe_spec
from sft_lightning.networks.heads import extract_linear_head, normalize_tau
from sft_lightning.networks.weights import Tensors, check_model_settings, read_weights, select_evaluated_weights
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.record import RunRecord
from sft_lightning.runs.trained_classes import read_recorded_classes
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec


def _is_bare(name: str, spec: InputSpec) -> bool:
    """Return whether an encoder has no weights at all, such as one that counts."""
    return not build_encoder(name, spec, imports=False)[0].state_dict()


@dataclass
class TrainedNetwork:
    """A trained network apart from its run.

    Attributes:
        backbone: Tensors under the names of the encoder (`net....`; of images also `mean` and `std`).
        head: Tensors `weight` (C, F) and `bias` (C,) of a linear layer, or nothing.
        metadata: What an exported part says of itself.
    """

    backbone: Tensors
    head: Tensors
    metadata: dict[str, Any]

    def network(self) -> Encoder:
        """Build the backbone with its weights, in eval mode.

        Raises:
            InputError: The weights do not fit the backbone.
        """
        spec = InputSpec.parse(self.metadata["input_spec"])
        network, _ = build_encoder(self.metadata["backbone"], spec, imports=False)
        if self.is_dense:
            if any(name.startswith("decoder.") for name in self.backbone):
                network.add_decoder({})
            else:
                network.stack_maps()
        try:
            network.load_state_dict(self.backbone)
        except RuntimeError as error:  # torch lists each tensor on a line of its own
            raise InputError(
                f"the weights do not fit backbone {network.name!r} (at {str(error).splitlines()[-1].strip()}): "
                "give a checkpoint that `fit` wrote"
            ) from error
        return network.eval()

    @property
    def is_dense(self) -> bool:
        """Whether the network gives a map of features, of whose pixels the head gives classes."""
        return bool(self.metadata.get("target") == "mask")

    def require_classes(self, name: str) -> None:
        """Refuse a network of pixels, and one that finds objects.

        Args:
            name: Name of the run or file as the user gave it.

        Raises:
            InputError: The network gives classes of pixels or objects.
        """
        if self.metadata.get("target") == "boxes":
            raise InputError(
                f"{name!r} finds objects, and classes of examples are needed: give the run of a classifier"
            )
        if self.is_dense:
            raise InputError(
                f"{name!r} classifies pixels, and classes of examples are needed: give the run of a classifier"
            )


def load_trained_network(path: Path) -> TrainedNetwork:
    """Read a checkpoint of any paradigm: averaged weights where it has some, and the head as one linear layer.

    Args:
        path: Path of the checkpoint.

    Raises:
        InputError: The checkpoint does not hold a paradigm of this package.
    """
    tensors, content = read_weights(path)
    settings = check_model_settings(content, path)
    name = settings.get("backbone", settings.get("network"))
    prefix = "encoder." if any(n.startswith("encoder.net.") for n in tensors) else "backbone."
    spec = InputSpec.from_settings(settings)
    needed = {"tau"} if settings.get("head") == "tau_normalized" else set()
    is_complete = any(n.startswith(prefix) for n in tensors)
    if name is None or spec is None or not needed <= settings.keys() or not (is_complete or _is_bare(name, spec)):
        raise InputError(
            f"checkpoint {str(path)!r} does not hold a paradigm of this package: give one that `fit` wrote"
        )
    use_files_of(path, spec)
    tensors = select_evaluated_weights(tensors)
    backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    head = extract_linear_head(tensors)
    if head and settings.get("head") == "tau_normalized":
        head = {"weight": normalize_tau(head["weight"], settings["tau"]), "bias": torch.zeros_like(head["bias"])}
    metadata: dict[str, Any] = {
        "backbone": name,
        **describe_spec(spec),
        **{n: backbone[n].flatten().tolist() for n in ("mean", "std") if n in backbone},
        "class_names": read_recorded_classes(content, path) or [],
        "made_by": str(settings.get("_class_path", "")).rpartition(".")[2] or None,
        "step": content.get("global_step"),
        "version": __version__,
    }
    if settings.get("target", "class") != "class":
        metadata["target"] = settings["target"]
    elif settings.get("detector") is not None:
        metadata["target"] = "boxes"
    names = ("ImageDataModule", "SegmentationDataModule", "DetectionDataModule")
    states = (content.get(name, {}) for name in names)
    if ranges := next((state["value_ranges"] for state in states if state.get("value_ranges")), None):
        metadata["value_ranges"] = ranges
    if head:
        metadata["num_features"] = head["weight"].shape[1]
    run = find_run(path)
    if run is not None:
        record = RunRecord(run)
        metadata |= {"run": str(run), "data_sha256": record.data_digest, "chain": record.chain}
    return TrainedNetwork(backbone, head, metadata)
