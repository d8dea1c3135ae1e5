"""The temperature of a run whose labels are all for training, fitted to labels that were held out in turn.

A run with a validation split needs none, since `predict` fits it there.
"""

import math
from pathlib import Path
from typing import NamedTuple

from sft_lightning.runs.lineage import find_run, hash_file
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

FILE = "temperature.json"
_REMEDY = "remove it to predict without calibration"


class CrossFittedTemperature(NamedTuple):
    """A temperature from cross-fitting.

    Attributes:
        value: Divisor of the logits.
        labels: Number of labels that were held out in turn.
        thresholds: Probability from which each class is predicted where examples have several; empty for 0.5.
    """

    value: float
    labels: int
    thresholds: tuple[float, ...] = ()


def write_temperature(run: Path, checkpoint: Path, temperature: CrossFittedTemperature) -> None:
    """Write a temperature into the folder of a run.

    Args:
        run: Folder of the run.
        checkpoint: Its checkpoint, which the temperature belongs to.
        temperature: Temperature.
    """
    write_json(run / FILE, {"checkpoint_sha256": hash_file(checkpoint), **temperature._asdict()})


def read_temperature(checkpoint: Path) -> CrossFittedTemperature | None:
    """Read the temperature of a checkpoint, or return None if its run has none or it belongs to another checkpoint.

    Args:
        checkpoint: Path of the checkpoint.

    Raises:
        InputError: The file is damaged.
    """
    run = find_run(checkpoint)
    if run is None or not (run / FILE).is_file():
        return None
    content = read_json(run / FILE, _REMEDY)
    if not isinstance(content, dict) or content.get("checkpoint_sha256") != hash_file(checkpoint):
        return None
    try:
        limits = tuple(float(limit) for limit in content.get("thresholds", ()))
        temperature = CrossFittedTemperature(float(content["value"]), int(content["labels"]), limits)
        wrong = "" if 0 < temperature.value < math.inf else "no temperature above 0"
        if not all(0 <= limit <= 1 for limit in limits):
            wrong = "thresholds outside 0 to 1"
    except (KeyError, TypeError, ValueError):
        wrong = "no temperature above 0"
    if wrong:
        raise InputError(f"{str(run / FILE)!r} holds {wrong}: {_REMEDY}")
    return temperature
