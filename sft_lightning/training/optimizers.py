"""Construction of the optimizer and its schedule from parameter groups."""

from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from sft_lightning.data.contract import few_label_data
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.lightning_patches import mark_as_fused

_FUSED = (SGD, Adam, AdamW)
_UNSHARDED = (SingleDeviceStrategy, DDPStrategy)  # strategies whose processes hold whole parameters


class Group(NamedTuple):
    """Parameters that share a learning rate.

    Attributes:
        name: Name for the log.
        parameters: Parameters of the group.
        scale: Factor of the optimizer's learning rate.
    """

    name: str
    parameters: list[Parameter]
    scale: float


def configure_optimizer(
    trainer: Trainer, groups: list[Group], make_optimizer: OptimizerCallable, make_schedule: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """Build one optimizer over all groups, each with its scaled learning rate, and the schedule.

    Args:
        trainer: Trainer with the precision, clipping and length of the training.
        groups: All parameters that are trained at any time.
        make_optimizer: Factory from parameter groups to an optimizer.
        make_schedule: Factory from the optimizer to a schedule, or None for a constant rate.

    Returns:
        Return value for `configure_optimizers`.

    Raises:
        InputError: Two settings contradict each other.
    """
    groups = _merge_equal_scales(groups)
    optimizer = make_optimizer([{"params": g.parameters, "name": g.name} for g in groups])
    for settings, group in zip(optimizer.param_groups, groups, strict=True):
        settings["lr"] = settings["lr"] * group.scale
    clips = trainer.gradient_clip_val is not None and "mixed" in str(trainer.precision)
    if clips and optimizer.defaults.get("fused"):
        raise InputError(
            f"gradient_clip_val with precision {trainer.precision} needs an optimizer that is not fused: set fused: "
            "false"
        )
    on_cuda = trainer.strategy.root_device.type == "cuda" and isinstance(trainer.strategy, _UNSHARDED)
    # A gradient scaler leaves the unscaling to a fused step, which comes after the check for nonfinite gradients.
    if on_cuda and not clips and getattr(trainer.precision_plugin, "scaler", None) is None:
        enable_fused_step(optimizer)
    if isinstance(optimizer, SGD):
        _start_momentum(optimizer)
    if make_schedule is None:
        return optimizer
    scheduler = make_schedule(optimizer)
    if getattr(scheduler, "total_steps", 0) is None:
        setattr(scheduler, "total_steps", count_total_steps(trainer))  # noqa: B010 (not in torch's types)
    cyclic = isinstance(scheduler, (OneCycleLR, CyclicLR))
    if cyclic and len(groups) > 1:  # they set one rate for all groups
        raise InputError(
            f"lr_scheduler {type(scheduler).__name__} cannot keep a slower backbone: leave backbone_lr_scale and "
            "layer_decay at 1, or use WarmupCosine"
        )
    interval = "step" if cyclic else getattr(scheduler, "interval", "epoch")
    config = {"scheduler": scheduler, "interval": interval}
    if hasattr(scheduler, "monitor"):  # ReduceLROnPlateau of LightningCLI
        config["monitor"] = scheduler.monitor
    return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]


def check_schedules(trainer: Trainer) -> None:
    """Refuse a schedule that raises an error at its end if it ends before the training.

    Args:
        trainer: Trainer about to train, with the state of its checkpoint restored.

    Raises:
        InputError: OneCycleLR has fewer steps than the training.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler, steps = config.scheduler, count_known_steps(trainer)
        if isinstance(scheduler, OneCycleLR) and steps > scheduler.total_steps:
            raise InputError(
                f"lr_scheduler OneCycleLR ends after {scheduler.total_steps:,} steps, the training after {steps:,}: "
                "set its total_steps to that, train shorter, or, to go on with a run that ends there, start a new one "
                "from it by model.init_args.weights"
            )


def count_known_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of a training; 0 if it has no end.

    Args:
        trainer: Trainer with its data module.
    """
    try:
        return count_total_steps(trainer)
    except InputError:
        return 0


def count_total_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of a training.

    Reading `trainer.estimated_stepping_batches` instead would make Lightning forget the position in a resumed epoch
    (pl#20550).

    Args:
        trainer: Trainer with its data module.

    Raises:
        InputError: Neither the data module nor the trainer determines the number.
    """
    most = int(trainer.max_steps)
    data = few_label_data(trainer)
    steps = None if data is None else data.epoch_steps
    if steps is None or trainer.max_epochs is None or trainer.max_epochs < 0:
        if most > 0:
            return most
        raise InputError(
            "the learning-rate schedule does not know how long the training is: set total_steps in the schedule, "
            "or trainer.max_steps"
        )
    total = sum(-(-int(steps) // factor) for factor in list_accumulation(trainer, trainer.max_epochs))
    return min(total, most) if most > 0 else total


def list_accumulation(trainer: Trainer, epochs: int) -> list[int]:
    """List the number of batches for an optimizer step in each epoch, which a callback may change.

    Args:
        trainer: Trainer with its callbacks.
        epochs: Number of epochs.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return [callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
    return [trainer.accumulate_grad_batches] * epochs


def enable_fused_step(optimizer: Optimizer) -> None:
    """Let torch's optimizers make each step with one kernel, unless the user chose an implementation.

    It is faster on a GPU, and can skip an update there without a wait (`nonfinite.py`).

    Args:
        optimizer: New optimizer.
    """
    defaults = optimizer.defaults
    if type(optimizer) not in _FUSED or defaults["fused"] is not None or defaults["foreach"] is not None:
        return
    # With dampening, momentum starts as the first gradient, which a fused step needs for all parameters at once.
    if defaults["differentiable"] or defaults.get("capturable") or defaults.get("dampening"):
        return
    mark_as_fused(optimizer)


def _start_momentum(optimizer: SGD) -> None:
    """Initialize the momentum of all parameters with zero, also of those that are frozen at first.

    torch's fused step cannot handle parameters with and without momentum together.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _merge_equal_scales(groups: list[Group]) -> list[Group]:
    """Merge groups with the same learning rate, since a fused optimizer launches a kernel for each group."""
    by_scale: dict[float, Group] = {}
    for name, parameters, scale in groups:
        if parameters:
            old = by_scale.get(scale)
            by_scale[scale] = (
                Group(f"{old.name}+{name}", old.parameters + parameters, scale)
                if old
                else Group(name, parameters, scale)
            )
    return list(by_scale.values())
