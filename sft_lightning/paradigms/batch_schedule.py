"""Schedules of supervised and unsupervised steps, and of the weight of the unsupervised loss."""

import math
from typing import Literal

Ramp = Literal["constant", "linear", "sigmoid"]


class BatchSchedule:
    """A supervised warm-up, then cycles of supervised and unsupervised steps, as a pure function of the batch number.

    Data modules call `parts` and `before` to find out which parts to load.
    """

    def __init__(
        self, warmup: int, supervised: int, unsupervised: int, needs_labels: bool = False, accumulate: int = 1
    ) -> None:
        """Set the lengths in optimizer steps.

        Args:
            warmup: Supervised steps before the first cycle.
            supervised: Supervised steps of each cycle, k_s.
            unsupervised: Unsupervised steps of each cycle, k_u.
            needs_labels: Whether an unsupervised step needs a labeled batch, too.
            accumulate: Number of batches per optimizer step.
        """
        self._warmup, self._supervised = warmup * accumulate, supervised * accumulate
        self._cycle = (supervised + unsupervised) * accumulate
        self._needs_labels = needs_labels

    def is_supervised(self, batch_idx: int) -> bool:
        """Return whether a batch is supervised.

        Args:
            batch_idx: Number of the batch, counted from the start of training.
        """
        return batch_idx < self._warmup or (batch_idx - self._warmup) % self._cycle < self._supervised

    def parts(self, batch_idx: int) -> tuple[str, ...]:
        """Return the parts that a batch holds.

        Args:
            batch_idx: Number of the batch, counted from the start of training.
        """
        if self.is_supervised(batch_idx):
            return ("labeled",)
        return ("labeled", "unlabeled") if self._needs_labels else ("unlabeled",)

    def before(self, part: str, batch_idx: int) -> int:
        """Count the batches that hold a part among the first `batch_idx`.

        Args:
            part: Name of the part, `labeled` or `unlabeled`.
            batch_idx: Number of the batch, counted from the start of training.
        """
        cycles, rest = divmod(max(0, batch_idx - self._warmup), self._cycle)
        supervised = min(batch_idx, self._warmup) + cycles * self._supervised + min(rest, self._supervised)
        if part == "unlabeled":
            return batch_idx - supervised
        return batch_idx if self._needs_labels else supervised


def ramp(kind: Ramp, step: int, steps: int) -> float:
    """Return the current share of lambda's full value.

    Args:
        kind: Shape of the rise: `constant`, `linear`, or `sigmoid`: exp(-5 (1 - t)^2), Laine & Aila 2017.
        step: Optimizer steps done so far.
        steps: Length of the rise in optimizer steps.
    """
    t = min(1.0, step / steps) if steps else 1.0
    return {"constant": 1.0, "linear": t, "sigmoid": math.exp(-5 * (1 - t) ** 2)}[kind]
