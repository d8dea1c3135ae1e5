"""Signals that ask a training to stop: a handler sets a flag, and all processes agree at the end of a batch.

Lightning 2.6 saves inside the handler, on the process that got the signal, while the others wait for it in a collective
call, so that a job of two processes hangs and is never requeued.
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

from sft_lightning.training.lightning_patches import disable_signal_handlers
from sft_lightning.utils.errors import StoppedBySignal

# SIGUSR1 is what SLURM sends ahead of a time limit (`--signal=USR1@120`): the job is requeued. SIGTERM comes before a
# preempted job is requeued by SLURM itself, or of `scancel`: it is not.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """What a training has been asked."""

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self._before: dict[signal.Signals, Any] = {}
        self._asked = 0
        self._group: Any = None
        self._question: tuple[Tensor, Any] | None = None

    def install(self, trainer: Trainer) -> None:
        """From now on signals set a flag.

        Args:
            trainer: About to train; its own handlers are not installed any more.
        """
        self._asked, self._question = 0, None
        disable_signal_handlers(trainer)
        if trainer.world_size > 1 and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")  # so that no process waits for its GPU
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def uninstall(self, exception: BaseException | None = None) -> None:
        """Puts back what was there.

        Args:
            exception: That ended the training, so that other processes may never answer the last question. After
                Ctrl-C, Lightning listens to no other one until it has cleaned up, and ends the process. SLURM sends
                a requeued job more signals, which must not cut short what is still written.
        """
        stopped_by_slurm = isinstance(exception, StoppedBySignal) and "SLURM_JOB_ID" in os.environ
        if isinstance(exception, KeyboardInterrupt) or stopped_by_slurm:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._question is not None and exception is None:
            self._question[1].wait()
        self._question = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked:  # asked a second time: at once
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            sys.stderr.write("\nStopping after this step; Ctrl-C again stops at once.\n")
        self._asked = max(self._asked, int(number))

    def agree(self) -> int:
        """The number of the signal that any process got, 0 for none, the same on all.

        With several processes each call sends this one's answer on its way, and reads that of the call before, which
        has arrived meanwhile.
        """
        if self._group is None:
            return self._asked
        before, self._question = self._question, None
        if before is not None:
            before[1].wait()
            if int(before[0]):
                return int(before[0])
        mine = torch.tensor([self._asked])
        work = distributed.all_reduce(mine, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._question = mine, work
        return 0


class SignalListener(Callback):
    """Listens to signals while a model is trained; whoever inherits from it asks `_signals.agreed()`."""

    def __init__(self, **settings: Any) -> None:
        """Listens to nothing yet.

        Args:
            settings: Of another base class.
        """
        super().__init__(**settings)
        self._signals = Signals()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._signals.install(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves signals to others."""
        self._signals.uninstall()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves signals to others: there is no teardown after one."""
        super().on_exception(trainer, pl_module, exception)
        self._signals.uninstall(exception)


class StopWithoutSaving(SignalListener):
    """Ends a training at a signal where nothing is saved; where something is, `RunCheckpoint` does."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends it."""
        if number := self._signals.agree():
            raise_stopped(trainer, number)


def raise_stopped(trainer: Trainer, number: int) -> None:
    """Ends a training that has saved, if it saves at all.

    Args:
        trainer: In training.
        number: Of the signal.

    Raises:
        Stopped: Always.
    """
    told = f"{signal.Signals(number).name} at step {trainer.global_step}: "
    if trainer.checkpoint_callback is None:
        raise StoppedBySignal(told + "nothing is saved where trainer.enable_checkpointing is false", number)
    told += "saved"
    if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
        if trainer.is_global_zero:
            told += _requeued()
    else:
        told += f"; go on with the same command and --ckpt_path {trainer.log_dir}"
    raise StoppedBySignal(told, number)


def _requeued() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return f", requeued job {job}" if done.returncode == 0 else f"; job {job} was not requeued: {done.stderr.strip()}"
