"""Runs on disk: `lightning_logs/NAME/version_N` with the configs, checkpoints, split and logs of one training.

What is heavy is imported where it is used: a path that is wrong is told before torch is imported.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lightning.utils.errors import InputError, find_input_error

if TYPE_CHECKING:
    from torch import nn

    from sft_lightning.networks.weights import Tensors

LOGS = "lightning_logs"


def is_below_logs(name: str) -> bool:
    """Whether a name leads to a folder below `lightning_logs`, and to none beside or above it.

    Args:
        name: Relative to it.
    """
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def check_run_name(setting: str, name: str) -> None:
    """Makes sure that what a run or a study writes lies below `lightning_logs`.

    Args:
        setting: That names it.
        name: As the user wrote it.

    Raises:
        InputError: It does not.
    """
    if not is_below_logs(name):
        raise InputError(f"{setting} is {name!r}, which leads out of {LOGS}/: give a name without '..' and a leading /")


def get_run_folder(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in, or None.

    Args:
        checkpoint: RUN/checkpoints/NAME.ckpt.
    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def find_checkpoint(name: str, runs: Path) -> Path:
    """The checkpoint that the user means.

    Args:
        name: A file, a run's folder (its last checkpoint), or `last` (the newest run's last checkpoint).
        runs: Where the runs of this name are.

    Raises:
        InputError: There is none.
    """
    if name == "last":
        found = [path for run in list_versions(runs) if (path := find_newest_checkpoint(run)) is not None]
        if not found:
            raise InputError(f"ckpt_path is 'last', but no run in {str(runs)!r} has a checkpoint yet: start without it")
        return found[-1]
    path = Path(name)
    if (path / "checkpoints").is_dir() and (checkpoint := find_newest_checkpoint(path)) is not None:
        return checkpoint
    if not path.is_file():
        raise InputError(f"ckpt_path {name!r} is no checkpoint and no run with checkpoints/last.ckpt: check the path")
    return path


def find_run_checkpoint(name: str) -> Path:
    """The checkpoint that the user means by a run.

    Args:
        name: Folder of a run (its last checkpoint), or a checkpoint.

    Raises:
        InputError: There is none.
    """
    try:
        return find_checkpoint(name, Path("."))
    except InputError as error:
        raise InputError(str(error).replace("ckpt_path", "run", 1)) from error


def list_versions(runs: Path) -> list[Path]:
    """The folders of the runs of a name, the newest last.

    Args:
        runs: `lightning_logs/NAME`.
    """
    found = [path for path in runs.glob("version_*") if path.name.removeprefix("version_").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def find_newest_checkpoint(run: Path) -> Path | None:
    """The last checkpoint of a run, or where a crash of the machine has damaged it the newest other one.

    Args:
        run: Its folder.

    Returns:
        None where there is none. What is left out is told.
    """
    last = run / "checkpoints" / "last.ckpt"
    others = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [last, *(other for other in others if other != last)] if others else []:
        if path.is_file() and zipfile.is_zipfile(path):
            return path
        if path.is_file():
            from lightning.pytorch.utilities import rank_zero_info

            rank_zero_info(f"Left out: {path}, which is not whole.")
    return last if last.is_file() else None  # to be refused with its reason


def read_checkpoint(path: Path) -> "tuple[Tensors, dict[str, Any]]":
    """Read a checkpoint that a command goes on from, before a Trainer stumbles over it.

    Args:
        path: File of the checkpoint.

    Returns:
        What `read_weights` gives.

    Raises:
        InputError: It is damaged, or holds objects that could run code.
    """
    from sft_lightning.networks.weights import read_weights

    try:
        return read_weights(path)
    except InputError as error:
        raise InputError(str(error).replace("weights", "ckpt_path", 1)) from error


def check_checkpoint(path: Path, tensors: "Tensors", model: "nn.Module") -> None:
    """Makes sure that a checkpoint is of this model.

    Args:
        path: The checkpoint, for the message.
        tensors: From `read_checkpoint`.
        model: What they are to be loaded into.

    Raises:
        InputError: It belongs to another model.
    """
    own = model.state_dict()
    # "Extra state" (torch's term) may have any shape: a strategy's memory of the unlabeled examples.
    fixed = {n: t for n, t in own.items() if not n.endswith("_extra_state")}
    differ = sorted({*own} ^ {*tensors}) or [n for n, t in fixed.items() if t.shape != tensors[n].shape]
    if differ:
        raise InputError(
            f"ckpt_path {str(path)!r} is of another model than the config ({len(differ)} tensors differ, such as "
            f"{differ[0]!r}): give the config of its run, or leave --config out"
        )


def describe_failure(error: Exception) -> str:
    """What a run failed of, for a command that makes many; a mistake in the program is raised again.

    Args:
        error: Bad input, or what Lightning or torch say of settings that do not go together or fit into no memory.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    found = find_input_error(error) or error
    if not isinstance(found, (InputError, MisconfigurationException, RuntimeError, MemoryError)):
        raise error
    return " ".join(str(found).split()) or "memory ran out"  # of which Python says no more
