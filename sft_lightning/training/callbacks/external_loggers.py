"""Runs of external loggers (MLflow, W&B), which a resumed or tested run continues."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

LOGGERS = "loggers.json"
# Constructor argument that names the run to continue, by class.
_ID = {"MLFlowLogger": "run_id", "WandbLogger": "id"}


def record_external_runs(loggers: Sequence[Logger], folder: Path) -> None:
    """Record the ids of external runs in the run's folder.

    Args:
        loggers: Started loggers of the trainer.
        folder: Folder of the run.
    """
    names = {type(logger).__name__: str(logger.version) for logger in loggers if type(logger).__name__ in _ID}
    if names:
        write_json(folder / LOGGERS, {**read_external_runs(folder), **names})


def read_external_runs(folder: Path) -> dict[str, str]:
    """Read the ids of external runs by the class of the logger.

    Args:
        folder: Folder of the run.

    Raises:
        InputError: `loggers.json` is damaged.
    """
    path = folder / LOGGERS
    try:
        runs: dict[str, str] = read_json(path, "remove it to start new runs there") if path.is_file() else {}
        if not all(isinstance(name, str) for name in runs.values()):
            raise ValueError("an id is not a string")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): remove it to start new runs there") from error
    return runs


def resume_external_runs(config: Any, folder: Path | None) -> None:
    """Make the loggers of a config continue the external runs of a folder.

    Args:
        config: Parsed `trainer.logger`: a class, a list of classes, or none.
        folder: Folder of the run, or None.
    """
    runs = {} if folder is None else read_external_runs(folder)
    for logger in config if isinstance(config, list) else [config]:
        name = str(logger.get("class_path", "")).rpartition(".")[2] if hasattr(logger, "get") else ""
        if name in runs and not logger.init_args.get(_ID[name]):
            logger.init_args[_ID[name]] = runs[name]
