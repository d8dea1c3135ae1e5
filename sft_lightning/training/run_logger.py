"""The TensorBoard logger of a run: of a new version, or of the run that a checkpoint belongs to."""

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
    """The logger of a new version, or of the run that a checkpoint belongs to.

    Args:
        checkpoint: What the command goes on from, or None.
        name: Of a new run.
        apart: Whether validation metrics are to stand apart from those of the training.
        lock: Lock of a training, which gets the folder; None where nothing is trained, or by another process.
    """
    kind = ValidationLogger if apart else TensorBoardLogger
    folder = get_run_folder(Path(checkpoint)) if checkpoint else None
    if folder is not None:
        if lock is not None:
            lock.lock(folder)
        return kind(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop(_VERSION, None)
    # The processes that DDP starts inherit the version, which they would count differently.
    version = os.environ.get(_VERSION)
    if version is None and lock is not None:
        version = lock.claim_version(Path(LOGS) / name).name
    logger = kind(LOGS, name, version, default_hp_metric=False)
    os.environ[_VERSION] = Path(logger.log_dir).name
    return logger
