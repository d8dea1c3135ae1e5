"""Learning-rate schedules that torch does not have."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up from one step's share, then half a cosine down (Loshchilov & Hutter 2017).

    Counted in optimizer steps. Without `total_steps` the schedule ends with the training.
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
        """Sets the first rate.

        Args:
            optimizer: Whose groups each keep their own full rate.
            warmup_steps: Steps of the rise.
            total_steps: Steps of the whole schedule; null for all steps of the training.
            final_scale: Share of the full rate at the end.
            last_epoch: Steps done before, -1 for none (torch's name).
        """
        self._to_the_end = total_steps is None
        self.warmup_steps, self.total_steps, self.final_scale = warmup_steps, total_steps, final_scale
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; the end of the training is not part of it, so that a resumed run may be longer."""
        state: dict[str, Any] = super().state_dict()
        if self._to_the_end:
            del state["total_steps"]
        return state

    def scale(self, step: int) -> float:
        """The share of the full rate at a step.

        Args:
            step: Optimizer steps done so far.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, (self.total_steps or step + 1) - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.final_scale + (1 - self.final_scale) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each group."""
        return [base * self.scale(self.last_epoch) for base in self.base_lrs]  # type: ignore[misc]
