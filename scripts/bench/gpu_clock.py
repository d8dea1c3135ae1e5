"""The clock of the GPU's benches: epochs, saves and what the device does."""

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PROFILED = 10  # steps


def idle() -> float:
    """Waits until the device has nothing to do.

    Returns:
        The time, in seconds.
    """
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def half() -> AbstractContextManager[Any]:
    """Mixed bfloat16."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


class Clock(Callback):
    """Seconds, images and saves of each epoch; what the device does in some steps of the last one."""

    def __init__(self, profiles: bool = False) -> None:
        """Starts with nothing.

        Args:
            profiles: Whether the last epoch is for the profiler, and not for the clock.
        """
        self.epochs: list[dict[str, float]] = []
        self.saves: list[float] = []  # seconds of each, from `timed_saves`
        self.profile: dict[str, Any] = {}
        self._profiles = profiles
        self._profiler: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._pictures, self._saved, self._start = 0, len(self.saves), idle()
        if self._profiles and trainer.current_epoch + 1 == trainer.max_epochs:
            self._profiler = torch.profiler.profile()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts, and starts the profiler when all is warm."""
        self._pictures += sum(len(part.indices) for part in batch.values())
        if self._profiler is not None and batch_idx == 5:
            idle()
            self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the profiler."""
        if self._profiler is not None and batch_idx == 4 + PROFILED:
            idle()
            self._profiler.stop()
            self.profile = told(self._profiler)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        seconds = idle() - self._start
        if self._profiler is None:
            found = {"seconds": seconds, "steps": trainer.num_training_batches, "pictures": self._pictures}
            self.epochs.append({**found, "saves": sum(self.saves[self._saved :])})


def told(profiler: Any) -> dict[str, Any]:
    """Milliseconds of kernels in a step, and the largest of them; what takes the CPU's time, with the profiler's."""
    averages = profiler.key_averages()
    own = sorted(averages, key=lambda row: -row.self_cpu_time_total)[:12]
    on_cpu = {row.key[:80]: round(row.self_cpu_time_total / 1e3 / PROFILED, 3) for row in own}
    rows = [row for row in averages if "CUDA" in str(row.device_type) and not row.is_user_annotation]
    rows.sort(key=lambda row: -row.self_device_time_total)
    largest = {
        row.key[:80]: {"ms": round(row.self_device_time_total / 1e3 / PROFILED, 3), "calls": row.count // PROFILED}
        for row in rows[:12]
    }
    whole = sum(row.self_device_time_total for row in rows) / 1e3 / PROFILED
    launches = sum(row.count for row in rows) / PROFILED
    return {"kernels_ms": round(whole, 3), "launches": launches, "kernels": largest, "cpu_ms": on_cpu}
