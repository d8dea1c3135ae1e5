"""Time epochs and saves on a GPU, and profile the device."""

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PROFILED = 10  # number of steps under the profiler


def synchronize() -> float:
    """Wait until the device is idle and return the time in seconds."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast_bfloat16() -> AbstractContextManager[Any]:
    """Run operations in mixed bfloat16 precision."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


class Clock(Callback):
    """Time each epoch and its saves, count its images, and profile steps of the last epoch."""

    def __init__(self, profiles: bool = False) -> None:
        """Create a clock without epochs.

        Args:
            profiles: Whether the last epoch is profiled instead of timed.
        """
        self.epochs: list[dict[str, float]] = []
        self.saves: list[float] = []  # seconds of each save, filled by `time_saves`
        self.profile: dict[str, Any] = {}
        self._profiles = profiles
        self._profiler: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._images, self._saves_before, self._start = 0, len(self.saves), synchronize()
        if self._profiles and trainer.current_epoch + 1 == trainer.max_epochs:
            self._profiler = torch.profiler.profile()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the images, and start the profiler after the first steps."""
        self._images += sum(len(part.indices) for part in batch.values())
        if self._profiler is not None and batch_idx == 5:
            synchronize()
            self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the profiler."""
        if self._profiler is not None and batch_idx == 4 + PROFILED:
            synchronize()
            self._profiler.stop()
            self.profile = summarize_profile(self._profiler)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock and record the epoch."""
        seconds = synchronize() - self._start
        if self._profiler is None:
            epoch = {"seconds": seconds, "steps": trainer.num_training_batches, "images": self._images}
            self.epochs.append({**epoch, "saves": sum(self.saves[self._saves_before :])})


def summarize_profile(profiler: Any) -> dict[str, Any]:
    """Return milliseconds per step of all kernels, of the longest kernels, and of the longest operations on the CPU.

    Times on the CPU include the profiler's own.
    """
    averages = profiler.key_averages()
    cpu_rows = sorted(averages, key=lambda row: -row.self_cpu_time_total)[:12]
    cpu_ms = {row.key[:80]: round(row.self_cpu_time_total / 1e3 / PROFILED, 3) for row in cpu_rows}
    rows = [row for row in averages if "CUDA" in str(row.device_type) and not row.is_user_annotation]
    rows.sort(key=lambda row: -row.self_device_time_total)
    longest = {
        row.key[:80]: {"ms": round(row.self_device_time_total / 1e3 / PROFILED, 3), "calls": row.count // PROFILED}
        for row in rows[:12]
    }
    kernels_ms = sum(row.self_device_time_total for row in rows) / 1e3 / PROFILED
    launches = sum(row.count for row in rows) / PROFILED
    return {"kernels_ms": round(kernels_ms, 3), "launches": launches, "kernels": longest, "cpu_ms": cpu_ms}
