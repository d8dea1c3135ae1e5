"""Training without gradient steps: one empty step, after which the model is validated and saved."""

from typing import Any

from torch import Tensor

from sft_lightning.paradigms.base import Paradigm, StepResult
from sft_lightning.utils.errors import InputError


class WithoutSteps(Paradigm):
    """Base of models that learn when training starts, and take no gradient steps."""

    def setup(self, stage: str) -> None:
        """Let training be one step, whatever the settings of the Trainer: another one would change nothing.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            InputError: More processes are about to fit than can.
        """
        if stage != "fit":
            return
        trainer: Any = self.trainer
        self.check_processes(trainer.world_size)
        trainer.fit_loop.max_epochs = 1
        trainer.limit_train_batches = 1
        trainer.check_val_every_n_epoch, trainer.val_check_interval = 1, 1.0

    def check_processes(self, world_size: int) -> None:
        """Check that some number of processes can fit; by default, any can.

        Args:
            world_size: Number of processes of the Trainer.

        Raises:
            InputError: They cannot.
        """

    def configure_optimizers(self) -> None:
        """Return no optimizer."""

    def step(self, batch: Any) -> StepResult:
        """Refuse to compute a loss.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{type(self).__name__} takes no gradient steps")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override] # no loss
        """Do nothing: the model is fitted."""
        return None

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since no step has gradients.

        Args:
            args: Arguments of Lightning's hook.
            kwargs: Keyword arguments of Lightning's hook.
        """

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Do nothing, since no step has gradients to check."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log nothing, since no step has a loss."""
