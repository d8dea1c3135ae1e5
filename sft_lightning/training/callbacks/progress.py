"""Progress on the console: one bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.contract import few_label_data


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
        if not self._due():
            return
        metrics = ", ".join(f"{n} {float(v):.4f}" for n, v in trainer.progress_bar_metrics.items())
        rank_zero_info(f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {metrics}")

    def init_predict_tqdm(self) -> Tqdm:
        """Counts images: batches of the last files are smaller, and how many there are need not be known."""
        bar = super().init_predict_tqdm()
        bar.unit = "image"
        return bar

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count."""
        super().on_predict_start(trainer, pl_module)
        self._said, self._done = time.monotonic(), 0
        data = few_label_data(trainer)
        self._count = None if data is None else data.predict_count

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Nothing: there is one loader, and its number of batches need not be known."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Moves the bar, or writes a line where there is none and the last one is some time ago."""
        indices = outputs["indices"] if isinstance(outputs, dict) else ()
        self._done += len(indices) * trainer.world_size
        if self._bars:
            self.predict_progress_bar.total = None if self._count is None else max(self._count, self._done)
            self.predict_progress_bar.update(self._done - self.predict_progress_bar.n)
        elif self._due():
            rank_zero_info(f"Predicted {self._done:,} of {'?' if self._count is None else f'{self._count:,}'} images.")

    def _due(self) -> bool:
        """Whether it is time for another line."""
        if self._bars or time.monotonic() - self._said < self.seconds:
            return False
        self._said = time.monotonic()
        return True
