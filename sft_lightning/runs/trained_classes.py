"""The classes that a file of weights was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lightning.data.class_names import parse_class_names
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.record import RunRecord
from sft_lightning.utils.errors import InputError


def read_recorded_classes(metadata: Mapping[str, Any], path: Path) -> list[str] | None:
    """Return the class names that a file of weights was trained on, in the order of its outputs.

    Args:
        metadata: Metadata that `read_weights` returns: the description of an exported part, or a checkpoint with its
            `hyper_parameters`.
        path: Path of the file, whose run is asked where the file itself names no classes.

    Returns:
        The names, or None where neither the file nor its run has them.
    """
    settings = metadata.get("hyper_parameters", metadata)
    names = settings.get("class_names") if isinstance(settings, Mapping) else None
    if not names and (run := find_run(path)) is not None:
        try:
            names = RunRecord(run).class_names
        except InputError:  # reported by whatever needs the split itself
            names = None
    return parse_class_names(names)
