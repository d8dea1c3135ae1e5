"""Signals that stop a training: a handler sets a flag, and all processes agree at the end of a batch.

Lightning 2.6 saves inside the handler, on the process that got the signal, while the others wait in a collective call:
a job of two processes hangs and is never requeued.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from sft_lightning.utils.errors import StoppedBySignal
from sft_lightning.utils.lightning_patches import disable_signal_handlers

# SLURM sends SIGUSR1 ahead of a time limit (`--signal=USR1@120`): the job is requeued. SIGTERM comes from `scancel`, or
# from SLURM before it requeues a preempted job itself: the job is not requeued here.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Signals that a training has received."""

    def __init__(self) -> None:
        """Start without handlers."""
        self._previous: dict[signal.Signals, Any] = {}
        self._received = 0
        self._group: Any = None
        self._pending: tuple[Tensor, Any] | None = None

    def install(self, trainer: Trainer) -> None:
        """Install handlers that set a flag, in place of Lightning's.

        Args:
            trainer: Trainer about to train.
        """
        self._received, self._pending = 0, None
        disable_signal_handlers(trainer)
        if trainer.world_size > 1 and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")  # so that no process waits for its GPU
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def uninstall(self, exception: BaseException | None = None) -> None:
        """Restore the previous handlers.

        Args:
            exception: Exception that ended the training, after which other processes may never answer the pending
                reduction. After Ctrl-C, Lightning ignores further ones until it has cleaned up and ends the process.
                SLURM sends more signals to a requeued job, which must not interrupt files that are still written.
        """
        stopped_by_slurm = isinstance(exception, StoppedBySignal) and "SLURM_JOB_ID" in os.environ
        if isinstance(exception, KeyboardInterrupt) or stopped_by_slurm:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._pending is not None and exception is None:
            self._pending[1].wait()
        self._pending = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received:  # the second time stops at once
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            sys.stderr.write("\nStopping after this step; Ctrl-C again stops at once.\n")
        self._received = max(self._received, int(number))

    def agree(self) -> int:
        """Return the number of the signal that any process has received, the same on all processes; 0 for none.

        With several processes, each call starts a reduction and returns the result of the one before, which has
        arrived in the meantime, so that no step waits.
        """
        if self._group is None:
            return self._received
        previous, self._pending = self._pending, None
        if previous is not None:
            previous[1].wait()
            if int(previous[0]):
                return int(previous[0])
        received = torch.tensor([self._received])
        work = distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = received, work
        return 0


class SignalListener(Callback):
    """Base class of callbacks that stop a training at a signal, which they query by `_signals.agree()`."""

    def __init__(self, **settings: Any) -> None:
        """Start without handlers.

        Args:
            settings: Arguments of another base class.
        """
        super().__init__(**settings)
        self._signals = Signals()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers for a training."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._signals.install(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handlers."""
        self._signals.uninstall()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous handlers, since there is no teardown after an exception."""
        super().on_exception(trainer, pl_module, exception)
        self._signals.uninstall(exception)


class StopWithoutSaving(SignalListener):
    """Stops a training without checkpoints at a signal; with checkpoints, `RunCheckpoint` does."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the training if a process has received a signal."""
        if number := self._signals.agree():
            raise_stopped(trainer, number)


def raise_stopped(trainer: Trainer, number: int) -> None:
    """Stop a training, and requeue its SLURM job where the signal asks for it.

    Args:
        trainer: Trainer in training, after its last checkpoint.
        number: Number of the signal.

    Raises:
        StoppedBySignal: Always.
    """
    message = f"{signal.Signals(number).name} at step {trainer.global_step}: "
    if trainer.checkpoint_callback is None:
        raise StoppedBySignal(message + "nothing is saved where trainer.enable_checkpointing is false", number)
    message += "saved"
    if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
        if trainer.is_global_zero:
            message += _requeue()
    else:
        message += f"; go on with the same command and --ckpt_path {trainer.log_dir}"
    raise StoppedBySignal(message, number)


def _requeue() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return f", requeued job {job}" if done.returncode == 0 else f"; job {job} was not requeued: {done.stderr.strip()}"
