"""Loggers beside TensorBoard that keep runs of their own: a resumed or tested run goes on in the one it has there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

LOGGERS = "loggers.json"
# By class: the argument that names a run to go on with.
_ID = {"MLFlowLogger": "run_id", "WandbLogger": "id"}


def record_external_runs(loggers: Sequence[Logger], folder: Path) -> None:
    """Notes in the run's folder what the run is called elsewhere.

    Args:
        loggers: Of the trainer, started.
        folder: Of the run.
    """
    names = {type(logger).__name__: str(logger.version) for logger in loggers if type(logger).__name__ in _ID}
    if names:
        write_json(folder / LOGGERS, {**read_external_runs(folder), **names})


def read_external_runs(folder: Path) -> dict[str, str]:
    """What a run is called elsewhere, by the class of the logger.

    Args:
        folder: Of the run.

    Raises:
        InputError: `loggers.json` is damaged.
    """
    path = folder / LOGGERS
    try:
        found: dict[str, str] = read_json(path, "remove it to begin new ones") if path.is_file() else {}
        if not all(isinstance(name, str) for name in found.values()):
            raise ValueError("a name is no text")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): remove it to begin new ones") from error
    return found


def resume_external_runs(config: Any, folder: Path | None) -> None:
    """Makes the loggers of a config go on with the runs of a folder.

    Args:
        config: `trainer.logger` as parsed: a class, a list of them, or none.
        folder: Of the run, or None.
    """
    names = {} if folder is None else read_external_runs(folder)
    for one in config if isinstance(config, list) else [config]:
        name = str(one.get("class_path", "")).rpartition(".")[2] if hasattr(one, "get") else ""
        if name in names and not one.init_args.get(_ID[name]):
            one.init_args[_ID[name]] = names[name]
