"""Models with a moving average of their weights, updated once a step, also where a checkpoint was saved between."""

from typing import Any

from sft_lightning.paradigms.base import Paradigm
from sft_lightning.training.ema import EMA


class AveragedWeights(Paradigm):
    """Base of models with averaged weights.

    Attributes:
        average: Averaged copy of the network, or None.
    """

    average: EMA | None
    _followed: int = 0
    _followed_there: int | None = None

    def on_train_start(self) -> None:
        """Start the average, and catch up on a step that a checkpoint inside an epoch had not averaged yet."""
        super().on_train_start()
        if self.average is not None and self._followed_there is not None:
            if self._followed_there < self.trainer.global_step:
                self._update_average(self.average)
            self._followed_there = None
        self._followed = self.trainer.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the last averaged step: callbacks that save after a step run before the average is updated."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["average_followed"] = self._followed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the last averaged step."""
        super().on_load_checkpoint(checkpoint)
        self._followed_there = checkpoint.get("average_followed")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after each optimizer step."""
        if self.average is not None and self.trainer.global_step > self._followed:
            self._update_average(self.average)
            self._followed = self.trainer.global_step
        super().on_train_batch_end(outputs, batch, batch_idx)

    def _update_average(self, average: EMA) -> None:
        average.update(self)
