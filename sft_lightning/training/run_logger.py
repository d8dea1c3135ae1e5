"""The TensorBoard logger of a run: for a new version, or for the run of a checkpoint."""

import os
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from sft_lightning.runs.lock import RunLock
from sft_lightning.runs.paths import LOGS, get_run_folder
from sft_lightning.training.callbacks.validation_log import ValidationLogger

_VERSION = "SFT_VERSION"


def build_run_logger(
    checkpoint: str | None, name: str, apart: bool = False, lock: RunLock | None = None
) -> TensorBoardLogger:
    """Build the logger for a new version, or for the run that a checkpoint belongs to.

    Args:
        checkpoint: Checkpoint that the command continues from, or None.
        name: Name of a new run.
        apart: Whether to log validation metrics separately from those of the training.
        lock: Lock that a training takes on its folder; None if nothing is trained, or another process holds the lock.
    """
    kind = ValidationLogger if apart else TensorBoardLogger
    folder = get_run_folder(Path(checkpoint)) if checkpoint else None
    if folder is not None:
        if lock is not None:
            lock.lock(folder)
        return kind(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop(_VERSION, None)
    # Processes that DDP starts inherit the version, since they would count differently.
    version = os.environ.get(_VERSION)
    if version is None and lock is not None:
        version = lock.claim_version(Path(LOGS) / name).name
    logger = kind(LOGS, name, version, default_hp_metric=False)
    os.environ[_VERSION] = Path(logger.log_dir).name
    return logger
