"""Settings that a command takes from its checkpoint instead of the data: the classes and, for `predict`, image size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lightning.cli.registry import list_parameters
from sft_lightning.networks.weights import check_model_settings
from sft_lightning.runs.trained_classes import read_recorded_classes


def set_checkpoint_classes(config: Any, metadata: Mapping[str, Any], checkpoint: Path) -> list[str] | None:
    """Number the classes of the data as the checkpoint has them, whatever the order in their source.

    Args:
        config: Config of a command, whose data settings are changed in place.
        metadata: Metadata that `read_weights` returns for the checkpoint.
        checkpoint: File of the checkpoint.

    Returns:
        Names of the checkpoint's classes; None if it does not name them, or its model has none.
    """
    if not {"num_classes", "class_names"} & {*list_parameters(config.model.class_path)}:
        return None
    names = read_recorded_classes(metadata, checkpoint)
    settings = config.data.get("init_args") or {}
    if names is not None and "class_names" in settings and settings["class_names"] is None:
        settings["class_names"] = names
    return names


def set_checkpoint_shape(data: Any, metadata: Mapping[str, Any], checkpoint: Path) -> None:
    """Take the classes and the image size from the checkpoint, so that its training data need not exist.

    Args:
        data: Config of the data module, changed in place.
        metadata: Metadata that `read_weights` returns for the checkpoint.
        checkpoint: File of the checkpoint of a classifier, or of another network that takes images.
    """
    settings = data.get("init_args") or {}
    if settings.get("predict_source") is None or not all(
        n in settings for n in ("class_names", "image_size", "channels")
    ):
        return
    learned = check_model_settings(metadata, checkpoint)
    shape = learned.get("image_shape")
    names = settings["class_names"] or learned.get("class_names")
    if shape is None or ("num_classes" in learned and not names):
        return
    settings["class_names"] = list(names or [])
    settings["channels"], settings["image_size"] = shape[0], shape[1]
