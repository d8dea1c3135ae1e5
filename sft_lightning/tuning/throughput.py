"""Measure the training throughput of a config in examples per second, with real steps and no files."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.data.contract import few_label_data
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.tuning.dry_run import skip_warmup

_WARMUP_CYCLES, _MIN_CYCLES = 2, 3  # cycles before the clock starts, and the fewest to time
_MANY_STEPS = 10**6  # steps per epoch: more than any trial takes


class ThroughputMeter(Callback):
    """Callback that times training steps and then stops the training.

    Learning rates are 0, so that nothing is learned.

    Attributes:
        examples: Mean number of examples per step.
        rate: Throughput in examples per second.
    """

    def __init__(self, turn: int, seconds: float) -> None:
        """Create the meter.

        Args:
            turn: Number of batches in one cycle of steps.
            seconds: Minimum duration of the timed steps.
        """
        self.examples, self.rate = 0.0, 0.0
        self._cycle, self._seconds = turn, seconds
        self._batches, self._count, self._begin = 0, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the learning rates to 0 and disable the schedule.

        Args:
            trainer: Trainer in training.
            pl_module: Unused.
        """
        trainer.strategy.lr_scheduler_configs = []
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the examples, and read the clock after each cycle, once the device has finished it.

        Args:
            trainer: Trainer in training.
            pl_module: Unused.
            outputs: Unused.
            batch: Batches of the splits by name.
            batch_idx: Unused.
        """
        data = few_label_data(trainer)
        views = 1 if data is None else len(data.labeled_views)  # each view has its place in the batch
        self._count += sum(len(part.indices) // (views if name == "labeled" else 1) for name, part in batch.items())
        self._batches += 1
        turns, inside = divmod(self._batches, self._cycle)
        if inside:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if turns == _WARMUP_CYCLES:
            self._begin, self._count = now, 0
        elif turns >= _WARMUP_CYCLES + _MIN_CYCLES and now - self._begin >= self._seconds:
            self.examples, self.rate = (
                self._count / (turns - _WARMUP_CYCLES) / self._cycle,
                self._count / (now - self._begin),
            )
            trainer.should_stop = True


def skip_to_full_training(cli: SFTCLI) -> int:
    """Make the model do from the first step what it would do later, including training the whole backbone.

    Args:
        cli: Command line with the model.

    Returns:
        Number of batches in one cycle of steps.
    """
    if isinstance(cli.model, FineTuneClassifier):
        cli.model.head_only_epochs, cli.model.cache_features = 0, False
    return skip_warmup(cli.model) * cli.trainer.accumulate_grad_batches


def measure_throughput(cli: SFTCLI, pace: ThroughputMeter) -> None:
    """Train with a new Trainer until the throughput is known.

    Args:
        cli: Command line with config, model and data.
        pace: Meter that takes the result and stops the training.
    """
    model, data, trainer = cli.model, cli.datamodule, cli.instantiate_trainer()
    trainer.callbacks.append(pace)  # type: ignore[attr-defined]
    if isinstance(data, FewLabelDataModule):
        data.steps_per_epoch = _MANY_STEPS
    else:
        trainer.fit_loop.max_epochs = -1
    trainer.fit(model, data)
