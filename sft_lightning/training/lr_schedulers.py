"""Learning-rate schedules that torch does not have."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to a share of the full rate (Loshchilov & Hutter 2017).

    The schedule counts optimizer steps. Without `total_steps`, it ends with the training.
    """

    interval = "step"

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        final_scale: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Store the settings and set the first rate.

        Args:
            optimizer: Optimizer whose groups each have their own full rate.
            warmup_steps: Number of warm-up steps.
            total_steps: Number of steps of the schedule; null for all steps of the training.
            final_scale: Factor of the full rate at the end.
            last_epoch: Number of earlier steps, -1 for none; the name is torch's.
        """
        self._ends_with_training = total_steps is None
        self.warmup_steps, self.total_steps, self.final_scale = warmup_steps, total_steps, final_scale
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the length of the training, so that a resumed run may be longer."""
        state: dict[str, Any] = super().state_dict()
        if self._ends_with_training:
            del state["total_steps"]
        return state

    def scale(self, step: int) -> float:
        """Return the factor of the full rate at a step.

        Args:
            step: Number of optimizer steps so far.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, (self.total_steps or step + 1) - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.final_scale + (1 - self.final_scale) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each group."""
        return [base * self.scale(self.last_epoch) for base in self.base_lrs]  # type: ignore[misc]
