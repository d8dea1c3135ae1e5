"""Settings that a command takes from its checkpoint instead of the data: classes and, for `predict`, the inputs."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lightning.cli.registry import list_parameters
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.weights import check_model_settings
from sft_lightning.runs.trained_classes import read_recorded_classes
from sft_lightning.utils.inputs import InputSpec


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
    """Take classes and inputs from the checkpoint, so that its training data need not exist.

    Args:
        data: Config of the data module, changed in place.
        metadata: Metadata that `read_weights` returns for the checkpoint.
        checkpoint: File of the checkpoint of any paradigm.
    """
    settings = data.get("init_args") or {}
    if settings.get("predict_source") is None or "class_names" not in settings:
        return
    learned = check_model_settings(metadata, checkpoint)
    spec = InputSpec.from_settings(learned)
    names = settings["class_names"] or learned.get("class_names")
    if spec is None or ("num_classes" in learned and not names):
        return
    module, _, name = data.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    given = kind.settings_for(spec) if issubclass(kind, FewLabelDataModule) else {}
    if given and all(setting in settings for setting in given):
        for setting, value in {**given, "class_names": list(names or [])}.items():
            settings[setting] = value
