"""The classes that a file of weights was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lightning.data.class_names import parse_class_names
from sft_lightning.runs.lineage import find_run


def read_recorded_classes(about: Mapping[str, Any], path: Path) -> list[str] | None:
    """Return the class names that a file of weights was trained on, in the order of its outputs.

    Args:
        about: What `read_weights` tells of the file: the description of an exported part, or of a checkpoint with its
            `hyper_parameters`.
        path: File of the weights; its run's `split.csv` is asked where the file itself names no classes.

    Returns:
        None where neither names them.
    """
    settings = about.get("hyper_parameters", about)
    names = settings.get("class_names") if isinstance(settings, Mapping) else None
    if not names:
        run = find_run(path)
        names = None if run is None else _classes_of_split(run / "split.csv")
    return parse_class_names(names)


def _classes_of_split(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.loads(file.readline().removeprefix("# ")).get("class_names")
    except (OSError, ValueError, AttributeError, RecursionError):  # whoever needs the split itself says so
        return None
