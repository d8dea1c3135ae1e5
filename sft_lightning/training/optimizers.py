"""From parameter groups to an optimizer and its schedule."""

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
from sft_lightning.training.lightning_patches import mark_as_fused
from sft_lightning.utils.errors import InputError

_FUSED = (SGD, Adam, AdamW)
_WHOLE = (SingleDeviceStrategy, DDPStrategy)  # each process has whole parameters


class Group(NamedTuple):
    """Parameters that share a learning rate.

    Attributes:
        name: For the log.
        parameters: The parameters.
        scale: Their share of the optimizer's learning rate.
    """

    name: str
    parameters: list[Parameter]
    scale: float


def configure_optimizer(
    trainer: Trainer, groups: list[Group], make_optimizer: OptimizerCallable, make_schedule: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """One optimizer over all groups, each with its share of the learning rate.

    Args:
        trainer: Tells precision, clipping and length of the training.
        groups: All parameters that are ever trained.
        make_optimizer: From parameter groups to an optimizer.
        make_schedule: From the optimizer to a schedule, or None for a constant rate.

    Returns:
        What `configure_optimizers` returns.

    Raises:
        InputError: Two of the settings do not go together.
    """
    groups = _merged(groups)
    optimizer = make_optimizer([{"params": g.parameters, "name": g.name} for g in groups])
    for made, asked in zip(optimizer.param_groups, groups, strict=True):
        made["lr"] = made["lr"] * asked.scale
    clips = trainer.gradient_clip_val is not None and "mixed" in str(trainer.precision)
    if clips and optimizer.defaults.get("fused"):
        raise InputError(
            f"gradient_clip_val with precision {trainer.precision} needs an optimizer that is not fused: set fused: "
            "false"
        )
    on_cuda = trainer.strategy.root_device.type == "cuda" and isinstance(trainer.strategy, _WHOLE)
    # A scaler would leave the unscaling to a fused step, after the look for gradients that are not finite.
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
    if cyclic and len(groups) > 1:  # they would set one rate for all groups
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
    """Refuse a schedule that raises an error at its end, which comes before that of the training.

    Args:
        trainer: Trainer about to train, with the state of the checkpoint that it goes on from.

    Raises:
        InputError: OneCycleLR has fewer steps than the training.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler, steps = config.scheduler, _given_steps(trainer)
        if isinstance(scheduler, OneCycleLR) and steps > scheduler.total_steps:
            raise InputError(
                f"lr_scheduler OneCycleLR ends after {scheduler.total_steps:,} steps, the training after {steps:,}: "
                "set its total_steps to that, train shorter, or, to go on with a run that ends there, start a new one "
                "from it by model.init_args.weights"
            )


def _given_steps(trainer: Trainer) -> int:
    """All optimizer steps of a training; 0 where it has no end."""
    try:
        return count_total_steps(trainer)
    except InputError:
        return 0


def count_total_steps(trainer: Trainer) -> int:
    """All optimizer steps of a training.

    `trainer.estimated_stepping_batches` would tell, too, but reading it makes Lightning forget where a resumed epoch
    stood (pl#20550).

    Args:
        trainer: With its data module.

    Raises:
        InputError: Neither the data module nor the trainer tells.
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
    whole = sum(-(-int(steps) // factor) for factor in list_accumulation(trainer, trainer.max_epochs))
    return min(whole, most) if most > 0 else whole


def list_accumulation(trainer: Trainer, epochs: int) -> list[int]:
    """Return how many batches share an optimizer step in each epoch; a callback may change that on the way.

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
    """Lets torch's own optimizers make one step of one kernel, where the user has not said how to make it.

    It takes less time on a GPU, and can be told there that there is nothing to learn from (`nonfinite.py`).

    Args:
        optimizer: New.
    """
    said = optimizer.defaults
    if type(optimizer) not in _FUSED or said["fused"] is not None or said["foreach"] is not None:
        return
    # With dampening a momentum begins as the first gradient, which a fused step needs for all parameters at once.
    if said["differentiable"] or said.get("capturable") or said.get("dampening"):
        return
    mark_as_fused(optimizer)


def _start_momentum(optimizer: SGD) -> None:
    """Gives all parameters a momentum of zero, which is where those begin that are released later.

    torch's fused step cannot take some parameters with a momentum beside others without.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _merged(groups: list[Group]) -> list[Group]:
    """Groups with the same learning rate as one: a fused optimizer makes one call for each."""
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
