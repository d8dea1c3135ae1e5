"""Checks before a run continues from a checkpoint: no code runs, no foreign file is touched, errors are explained."""

import os
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from sft_lightning.utils.errors import InputError, find_input_error
from sft_lightning.utils.lightning_patches import wrap_restoring

# Entries that Lightning reads unconditionally.
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": Mapping, "loops": Mapping,
    "callbacks": Mapping, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def check_content(checkpoint: Any, path: str | Path) -> None:
    """Check that a checkpoint has the entries that Lightning needs.

    Args:
        checkpoint: Content of the file.
        path: Path of the checkpoint for the error.

    Raises:
        InputError: An entry is missing or has another type.
    """
    wrong = [name for name, kind in _REQUIRED.items() if not isinstance(checkpoint.get(name), kind)]
    if wrong:
        raise InputError(
            f"ckpt_path {str(path)!r} is not a checkpoint of a training (missing or damaged: {', '.join(wrong)}): give "
            "one that `fit` wrote, or start from it by weights"
        )


def check_paths(state: Mapping[str, Any], folder: str | Path | None, path: Any) -> None:
    """Check that a checkpoint names only files beside it, since the former best one is deleted by its name.

    Lightning 2.6 only checks whether the name starts with the folder's, as `FOLDER/../../thesis.txt` does.

    Args:
        state: State of `ModelCheckpoint`.
        folder: Folder of the run's checkpoints.
        path: Path of the checkpoint for the error.

    Raises:
        InputError: The checkpoint names a file outside of the folder.
    """
    allowed = None if folder is None else os.path.normpath(folder)
    best = state.get("best_k_models") or {}
    for name in [*best, *(state.get(f"{kind}_model_path") or "" for kind in ("best", "kth_best", "last"))]:
        # A moved run names files that do not exist; Lightning deletes none of them.
        is_inside = allowed is not None and isinstance(name, str) and name.startswith(os.path.join(allowed, ""))
        if not isinstance(name, str) or (is_inside and os.path.dirname(os.path.normpath(name)) != allowed):
            raise InputError(
                f"ckpt_path {str(path)!r} names {name!r} as a checkpoint of its run, which is elsewhere: it was not "
                "written by `fit`; start anew"
            )


def install(trainer: Trainer) -> None:
    """Replace any error in restoring a checkpoint by a sentence that says what does not fit.

    Args:
        trainer: Trainer before it runs.
    """
    wrap_restoring(trainer, partial(_explain_errors, trainer))


def _explain_errors(trainer: Trainer, restore: Callable[..., None]) -> Callable[..., None]:
    @wraps(restore)
    def restore_or_explain(*args: Any, **kwargs: Any) -> None:
        try:
            restore(*args, **kwargs)
            for config in trainer.lr_scheduler_configs:  # a scheduler accepts any state
                if not isinstance(config.scheduler.state_dict().get("last_epoch", 0), int):
                    raise TypeError("last_epoch of a schedule is not a number")
        except Exception as error:
            if (
                trainer.ckpt_path is None
                or isinstance(error, MisconfigurationException)
                or find_input_error(error) is not None
            ):
                raise
            message = " ".join(str(error).split())
            raise InputError(
                f"ckpt_path {str(trainer.ckpt_path)!r} does not fit the config, or is damaged "
                f"({type(error).__name__}: {message:.200}): give the config of its run, or start anew"
            ) from error

    return restore_or_explain
