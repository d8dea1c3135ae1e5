"""What goes on from a checkpoint: nothing in it is run, no file beside it is touched, and what does not fit is told."""

import os
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from sft_lightning.training.lightning_patches import wrap_restoring
from sft_lightning.utils.errors import InputError, find_input_error

# What Lightning looks up without asking; of a run of ours all of it is there.
_KEPT: dict[str, type | tuple[type, ...]] = {
    "epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": Mapping, "loops": Mapping,
    "callbacks": Mapping, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def check_content(checkpoint: Any, path: str | Path) -> None:
    """Makes sure that a checkpoint has what Lightning takes from it.

    Args:
        checkpoint: As it was read.
        path: Named in the error.

    Raises:
        InputError: Something is missing, or of another type.
    """
    wrong = [name for name, kind in _KEPT.items() if not isinstance(checkpoint.get(name), kind)]
    if wrong:
        raise InputError(
            f"ckpt_path {str(path)!r} is no checkpoint of a training (without {', '.join(wrong)}, as it must be): give "
            "one that `fit` wrote, or start from it by weights"
        )


def check_paths(state: Mapping[str, Any], folder: str | Path | None, path: Any) -> None:
    """Makes sure that a checkpoint names no files but those beside it: the former best one is removed by its name.

    Lightning 2.6 only asks whether the name begins with the folder's, which `FOLDER/../../thesis.txt` does.

    Args:
        state: Of `ModelCheckpoint`.
        folder: Where it writes.
        path: Of the checkpoint, named in the error.

    Raises:
        InputError: It names another one.
    """
    own = None if folder is None else os.path.normpath(folder)
    best = state.get("best_k_models") or {}
    for name in [*best, *(state.get(f"{kind}_model_path") or "" for kind in ("best", "kth_best", "last"))]:
        # A run whose folder was moved names files that are gone, of which Lightning removes none.
        inside = own is not None and isinstance(name, str) and name.startswith(os.path.join(own, ""))
        if not isinstance(name, str) or (inside and os.path.dirname(os.path.normpath(name)) != own):
            raise InputError(
                f"ckpt_path {str(path)!r} names {name!r} as a checkpoint of its run, which lies elsewhere: it is none "
                "that `fit` wrote; start anew"
            )


def install(trainer: Trainer) -> None:
    """Makes Lightning tell in a sentence what of a checkpoint does not fit, whatever it stumbles over.

    Args:
        trainer: Before it runs.
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
            said = " ".join(str(error).split())
            raise InputError(
                f"ckpt_path {str(trainer.ckpt_path)!r} does not fit the config, or is damaged "
                f"({type(error).__name__}: {said:.200}): give the config of its run, or start anew"
            ) from error

    return restore_or_explain
