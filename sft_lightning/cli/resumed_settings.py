"""Which settings of a `fit` that goes on are those of its checkpoint, whatever the command says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.runs.record import RunRecord
from sft_lightning.utils.errors import InputError

_STATEFUL = ("optimizer", "lr_scheduler")
_OF_GROUPS = ("backbone_lr_scale", "layer_decay")  # factors of learning rates, which are part of the optimizer's state


def restore_settings(model: Any, run: Path) -> None:
    """Set what the state in a checkpoint overrides to what it was, and say so.

    Args:
        model: Config of the model, changed in place.
        run: Folder of the run that goes on.

    Raises:
        InputError: The optimizer or the schedule is another one, which the state does not fit.
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
                f"model.{name} is {classes[1]}, but the run {str(run)!r} goes on with the state of {classes[0]}: leave "
                "that setting as it was, or start a new run from this one by model.init_args.weights"
            )
        kept += _restore(f"{name}.", old.get("init_args") or {}, new.get("init_args") or {}, None)
    kept += _restore("", then, now, _OF_GROUPS)
    if kept:
        rank_zero_info(f"The checkpoint overrides settings of the model: {', '.join(kept)}.")


def _restore(prefix: str, then: Mapping[str, Any], now: Any, names: tuple[str, ...] | None) -> list[str]:
    said = []
    for name in then if names is None else names:
        # What was null, such as the steps of a schedule that lasts as long as the training, is not part of the state.
        if then.get(name) is None or name not in now or _as_list(now[name]) == _as_list(then[name]):
            continue
        said.append(f"{prefix}{name} is {then[name]}, not {now[name]}")
        now[name] = then[name]
    return said


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
