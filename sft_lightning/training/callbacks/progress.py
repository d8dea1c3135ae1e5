"""Progress on the console: one bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.contract import few_label_data


class Progress(TQDMProgressBar):
    """Shows only the training bar; in a file or pipe, where a bar would fill thousands of lines, prints some lines."""

    def __init__(self, seconds: float = 10.0) -> None:
        """Store the interval.

        Args:
            seconds: Minimum time between two lines without a terminal.
        """
        self._bars = sys.stdout.isatty()
        # A refresh reads metrics from the device; 0 turns all bars off.
        super().__init__(refresh_rate=50 if self._bars else 0)
        self.seconds = seconds
        self._last_line = time.monotonic()

    def init_validation_tqdm(self) -> Tqdm:
        """Return a disabled bar, since the training bar shows the metrics."""
        return Tqdm(disable=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics beside the bar, without the version number."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line if there is no bar and one is due."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._due():
            return
        metrics = ", ".join(f"{n} {float(v):.4f}" for n, v in trainer.progress_bar_metrics.items())
        rank_zero_info(f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{': ' if metrics else ''}{metrics}")

    def init_predict_tqdm(self) -> Tqdm:
        """Return a bar that counts examples, since the number of batches may be unknown."""
        bar = super().init_predict_tqdm()
        bar.unit = self._noun
        return bar

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        data = few_label_data(trainer)
        self._noun = "example" if data is None else data.input_spec.noun
        super().on_predict_start(trainer, pl_module)
        self._last_line, self._done = time.monotonic(), 0
        self._count = None if data is None else data.predict_count

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Do nothing: there is one loader, whose number of batches may be unknown."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar, or print a line if there is none and one is due."""
        indices = outputs["indices"] if isinstance(outputs, dict) else ()
        self._done += len(indices) * trainer.world_size
        if self._bars:
            self.predict_progress_bar.total = None if self._count is None else max(self._count, self._done)
            self.predict_progress_bar.update(self._done - self.predict_progress_bar.n)
        elif self._due():
            count = "?" if self._count is None else f"{self._count:,}"
            rank_zero_info(f"Predicted {self._done:,} of {count} {self._noun}s.")

    def _due(self) -> bool:
        """Return whether it is time for another line, and restart the interval if so."""
        if self._bars or time.monotonic() - self._last_line < self.seconds:
            return False
        self._last_line = time.monotonic()
        return True
