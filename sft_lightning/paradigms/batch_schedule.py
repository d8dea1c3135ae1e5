"""Schedules of supervised and unsupervised steps, and of the weight of the unsupervised loss."""

import math
import sys
from typing import Literal, NamedTuple

from lightning.pytorch import Trainer

from sft_lightning.training.optimizers import list_accumulation

Ramp = Literal["constant", "linear", "sigmoid"]
SHORT_RUN = 300  # optimizer steps; a warm-up and a ramp helped in runs of up to that many (scripts/bench/guards.py)


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


def choose_lengths(steps: int, countable: int) -> tuple[int, int]:
    """Choose the lengths of the warm-up and of the ramp where the settings leave them open.

    A head that starts from random weights teaches itself its first answers. A short run is too short to unlearn
    them: a quarter of it learns from the labels alone, then lambda rises over half of it.

    Args:
        steps: Optimizer steps of the training; 0 if unknown.
        countable: Most optimizer steps of a warm-up that `BatchSchedule` can count.

    Returns:
        Both in optimizer steps; zeros for a run that is not short.
    """
    return (min(steps // 4, countable), steps // 2) if steps <= SHORT_RUN else (0, 0)


class Accumulation(NamedTuple):
    """How batches add up to optimizer steps.

    Attributes:
        batches: Batches per optimizer step, in the first epoch.
        countable: Most steps from the start that all have as many batches.
        problem: Sentence about a step that has fewer or more batches; empty if all have as many.
    """

    batches: int
    countable: int
    problem: str


def find_accumulation(trainer: Trainer, epoch_steps: int) -> Accumulation:
    """Find out how batches add up to optimizer steps.

    Args:
        trainer: Trainer with its callbacks.
        epoch_steps: Number of training batches of an epoch.
    """
    accumulate, *others = dict.fromkeys(list_accumulation(trainer, max(1, trainer.max_epochs or 1)))
    if others:
        problem = (
            f"GradientAccumulationScheduler changes from {accumulate} to {others[0]} batches per optimizer step, "
            "so that warm-up and turns would lose their step: set trainer.accumulate_grad_batches instead"
        )
    elif epoch_steps % accumulate:
        problem = (
            f"an epoch has {epoch_steps} batches, which accumulate_grad_batches {accumulate} does not divide, so "
            "that warm-up and turns would lose their step: set steps_per_epoch to a multiple"
        )
    else:
        return Accumulation(accumulate, sys.maxsize, "")
    return Accumulation(accumulate, epoch_steps // accumulate, problem)


def ramp(kind: Ramp, step: int, steps: int) -> float:
    """Return the current share of lambda's full value.

    Args:
        kind: Shape of the rise: `constant`, `linear`, or `sigmoid`: exp(-5 (1 - t)^2), Laine & Aila 2017.
        step: Optimizer steps done so far.
        steps: Length of the rise in optimizer steps.
    """
    t = min(1.0, step / steps) if steps else 1.0
    return {"constant": 1.0, "linear": t, "sigmoid": math.exp(-5 * (1 - t) ** 2)}[kind]
