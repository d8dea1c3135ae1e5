"""Progress on the console: one bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info


class Progress(TQDMProgressBar):
    """The training bar alone; in a file or pipe, where a bar would be thousands of lines, a line every few seconds."""

    def __init__(self, seconds: float = 10.0) -> None:
        """Sets the pace.

        Args:
            seconds: Shortest time between two lines where there is no terminal.
        """
        self._bars = sys.stdout.isatty()
        # A refresh reads metrics from the device; 0 turns all bars off.
        super().__init__(refresh_rate=50 if self._bars else 0)
        self.seconds = seconds
        self._said = time.monotonic()

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: the metrics appear on the training bar."""
        return Tqdm(disable=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar: no version number, the run's folder was named."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a line where there is no bar and the last one is some time ago."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._bars or time.monotonic() - self._said < self.seconds:
            return
        self._said = time.monotonic()
        metrics = ", ".join(f"{n} {float(v):.4f}" for n, v in trainer.progress_bar_metrics.items())
        rank_zero_info(f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {metrics}")
