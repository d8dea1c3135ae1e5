"""`sft-lightning find-lr`: run a learning rate range test (Smith 2017) on a config.

The rate grows by a constant factor per step, from one at which nothing is learned to one at which training diverges,
and the loss of each step is recorded. Lightning's `Tuner.lr_find` does not work here: it needs an attribute `lr` of the
module, where ours is an argument of the optimizer in the YAML (pl#16787); it gives all parameter groups one rate, so
that a slow backbone would become as fast as its head; and it saves a checkpoint.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from sft_lightning.cli.lightning_cli import destroy_process_group, run
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.runs.paths import LOGS
from sft_lightning.training.module_interfaces import HasSupervisedLoss
from sft_lightning.tuning.dry_run import TrialCLI, skip_warmup
from sft_lightning.tuning.lr_range import NAME, LRCurve, format_curve, write_curve
from sft_lightning.utils.errors import InputError, check_min, check_positive


class LRSweep(Callback):
    """Callback that raises the rate from step to step, records the losses, and stops at the end of the range."""

    def __init__(self, curve: LRCurve, turn: int = 1) -> None:
        """Create the callback.

        Args:
            curve: Curve with the rates; it takes the losses.
            turn: Number of optimizer steps at each rate.
        """
        self.curve, self._cycle = curve, turn
        self._losses: list[Tensor] = []
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record each group's share of the optimizer's rate, and disable the schedule.

        Args:
            trainer: Trainer in training.
            pl_module: Module with one optimizer.

        Raises:
            InputError: The optimizer has no learning rate, or there are several optimizers.
        """
        optimizer = trainer.optimizers[0]
        rate = optimizer.defaults.get("lr")
        if not rate or len(trainer.optimizers) > 1:
            raise InputError(
                f"optimizer {type(optimizer).__name__} has lr {rate}: find-lr needs one optimizer, with an lr above 0"
            )
        # A schedule that has begun says in `initial_lr` what the rate was before.
        self._shares = [float(group.get("initial_lr", group["lr"]) / rate) for group in optimizer.param_groups]
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the learning rate.

        Args:
            trainer: Trainer in training.
            pl_module: Unused.
            batch: Unused.
            batch_idx: Unused.
        """
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = self.curve.rates[len(self.curve.losses)] * share

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss: its mean over the batches of a rate and over all processes.

        Of a semi-supervised step it is L_s. The network itself makes the targets of L_u, which may fall because they
        become easy, and rise because more of them are accepted.

        Args:
            trainer: Trainer in training.
            pl_module: Module in training.
            outputs: Output of the step, whose loss Lightning has divided by the batches per optimizer step.
            batch: Unused.
            batch_idx: Unused.
        """
        every = trainer.accumulate_grad_batches
        loss: Tensor | None = outputs["loss"] * every
        if isinstance(pl_module, HasSupervisedLoss):
            loss = pl_module.supervised_loss
        self._batches += 1
        if loss is not None:
            self._losses.append(loss)
        if self._batches < self._cycle * every:
            return
        mean = trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean")
        self._losses, self._batches = [], 0
        if self.curve.add(float(mean)):
            trainer.should_stop = True


class FindLRCLI(TrialCLI):
    """Trial with options for the range of rates."""

    command = "find-lr"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--min_lr`, `--max_lr` and `--steps`.

        Args:
            parser: Parser of a subcommand.
        """
        super().add_arguments_to_parser(parser)
        parser.add_argument("--min_lr", type=float, default=1e-6, help="First rate of the range.")
        parser.add_argument("--max_lr", type=float, default=10.0, help="Last rate of the range.")
        parser.add_argument("--steps", type=int, default=100, help="Number of rates, each one training step.")

    def before_instantiate_classes(self) -> None:
        """Check the range before the data is opened."""
        super().before_instantiate_classes()
        given = self.config.fit
        check_positive(min_lr=given.min_lr)
        check_min(10, steps=given.steps)
        if not given.min_lr < given.max_lr < math.inf:
            raise InputError(f"max_lr is {given.max_lr}: give a number above min_lr, which is {given.min_lr}")


def find_lr(argv: Sequence[str]) -> str:
    """Train for some hundred steps at rising rates and suggest one.

    The test covers the beginning of the training: the first stage where there are two, lambda at its full value from
    the first step (no warm-up, no ramp), and a full cycle of supervised and unsupervised steps at each rate where these
    alternate, since their losses are not comparable.

    Args:
        argv: Arguments of `fit`, and `--min_lr`, `--max_lr` and `--steps`.

    Returns:
        The suggestion and the paths of the curve; an empty text on all processes but the first.

    Raises:
        InputError: The input is wrong.
    """
    cli = run(["fit", *argv], FindLRCLI)
    given, model, data, trainer = cli.config.fit, cli.model, cli.datamodule, cli.trainer
    turn = skip_warmup(model)
    if isinstance(data, FewLabelDataModule):  # one epoch, in which no stage ends
        data.steps_per_epoch = given.steps * turn * trainer.accumulate_grad_batches
    else:
        trainer.fit_loop.max_epochs = -1
    curve = LRCurve(given.min_lr, given.max_lr, given.steps)
    trainer.callbacks.append(LRSweep(curve, turn))  # type: ignore[attr-defined]
    try:
        trainer.fit(model, data)
    except RuntimeError:
        if all(bool(p.isfinite().all()) for p in model.parameters()):
            raise
        curve.add(math.nan)  # some losses cannot even be computed of a network that has fallen apart
    finally:
        destroy_process_group()
    if not trainer.is_global_zero:
        return ""
    text = format_curve(curve, lr_option(given))
    if not curve.losses:
        return text
    folder = Path(LOGS) / f"{given.run_name}_{NAME}"
    write_curve(folder, curve)
    return f"{text}\nWritten: {folder / NAME}.png and {NAME}.csv"


def lr_option(given: Any) -> str:
    """Return the option of `fit` that sets the learning rate.

    Args:
        given: Parsed config.
    """
    schedule = (given.model.get("init_args") or {}).get("lr_scheduler") or {}
    peak = "max_lr" in (schedule.get("init_args") or {})  # OneCycleLR and CyclicLR take no notice of the optimizer's
    return f"--model.init_args.{'lr_scheduler.init_args.max_lr' if peak else 'optimizer.init_args.lr'}"
