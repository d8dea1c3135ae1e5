"""Runs on disk: `lightning_logs/NAME/version_N` with the configs, checkpoints, split and logs of one training."""

from pathlib import Path

from sft_lightning.utils.errors import InputError

LOGS = "lightning_logs"


def is_below_logs(name: str) -> bool:
    """Return whether a name leads to a folder below `lightning_logs`, rather than beside or above it.

    Args:
        name: Path relative to `lightning_logs`.
    """
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def check_run_name(setting: str, name: str) -> None:
    """Check that a run or a study writes below `lightning_logs`.

    Args:
        setting: Name of the setting that holds the name.
        name: Name of the run or the study.

    Raises:
        InputError: The name leads out of `lightning_logs`.
    """
    if not is_below_logs(name):
        raise InputError(f"{setting} is {name!r}, which leads out of {LOGS}/: give a name without '..' and a leading /")


def get_run_folder(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in, or None.

    Args:
        checkpoint: Path such as RUN/checkpoints/NAME.ckpt.
    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def list_versions(runs: Path) -> list[Path]:
    """List the folders of the runs of one name, the newest last.

    Args:
        runs: Folder `lightning_logs/NAME`.
    """
    folders = [path for path in runs.glob("version_*") if path.name.removeprefix("version_").isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("version_")))
