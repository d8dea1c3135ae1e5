"""Settings of a resumed `fit` that come from its checkpoint, whatever the command says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.runs.record import RunRecord
from sft_lightning.utils.errors import InputError

_STATEFUL = ("optimizer", "lr_scheduler")
_OF_GROUPS = ("backbone_lr_scale", "layer_decay")  # factors of learning rates, which the optimizer's state contains


def restore_settings(model: Any, run: Path) -> None:
    """Restore the settings that the state in a checkpoint overrides, and report them.

    Args:
        model: Config of the model, changed in place.
        run: Folder of the run that is resumed.

    Raises:
        InputError: The optimizer or the schedule has another class, which the state does not fit.
    """
    then, now = RunRecord(run).read_settings("model"), model.get("init_args") or {}
    kept = []
    for name in _STATEFUL:
        if name not in then or name not in now:
            continue
        old, new = then[name] or {}, now[name] or {}
        classes = [str(made.get("class_path") or "null").rpartition(".")[2] for made in (old, new)]
        if classes[0] != classes[1]:
            raise InputError(
                f"model.{name} is {classes[1]}, but the run {str(run)!r} resumes with the state of {classes[0]}: leave "
                "that setting as it was, or start a new run from this one with model.init_args.weights"
            )
        kept += _restore(f"{name}.", old.get("init_args") or {}, new.get("init_args") or {}, None)
    kept += _restore("", then, now, _OF_GROUPS)
    if kept:
        rank_zero_info(f"The checkpoint overrides settings of the model: {', '.join(kept)}.")


def _restore(prefix: str, then: Mapping[str, Any], now: Any, names: tuple[str, ...] | None) -> list[str]:
    restored = []
    for name in then if names is None else names:
        # A setting that was null, such as the steps of a schedule as long as the training, is not part of the state.
        if then.get(name) is None or name not in now or _as_list(now[name]) == _as_list(then[name]):
            continue
        restored.append(f"{prefix}{name} is {then[name]}, not {now[name]}")
        now[name] = then[name]
    return restored


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
