"""How well a network does on validation examples, and whether another one does better beyond noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sft_lightning.utils.inputs import Inputs

Results = dict[str, Tensor]  # what a judge found out about a network, on the CPU, as checkpoints keep it


class Change(NamedTuple):
    """Comparison of a network with an earlier one.

    Attributes:
        p_value: How probable a loss of this size would be if both were as good, one-sided.
        details: Details for people, without brackets.
    """

    p_value: float
    details: str


class Judge(ABC):
    """Judge of networks of one kind.

    Attributes:
        title: Name of the score for people, such as `accuracy`.
        most: Most validation examples that are judged.
        remedy: What to do where no example is held out, as the end of a sentence.
    """

    title: str
    most: ClassVar[int] = 10_000
    remedy: ClassVar[str] = ""

    @abstractmethod
    def collect(self, network: Any, batches: Iterable[tuple[Inputs, Tensor]]) -> Results:
        """Apply a network to validation examples.

        Args:
            network: Network in evaluation mode: a module that is trained, or its control.
            batches: Inputs and targets.
        """

    @abstractmethod
    def count(self, results: Results) -> int:
        """Return the number of examples.

        Args:
            results: Value of `collect`.
        """

    @abstractmethod
    def measure(self, results: Results) -> float:
        """Return the score of a network, higher is better.

        Args:
            results: Value of `collect`.
        """

    @abstractmethod
    def compare(self, before: Results, after: Results) -> Change | None:
        """Test whether a network is worse than an earlier one; None where they were judged on other examples.

        Args:
            before: Value of `collect` of the earlier network.
            after: Value of `collect` of the later network.
        """


class ScoreJudge(Judge):
    """Judge by a score of each example: 1 where it is right and 0 elsewhere, of pixels up to 1."""

    remedy: ClassVar[str] = "; `solve` and a study with `folds` hold out each label in turn"

    def __init__(self, task: Any) -> None:
        """Keep the task.

        Args:
            task: Kind of target, a `Task`.
        """
        self._task, self.title = task, task.judged_metric[1]

    def collect(self, network: Any, batches: Iterable[tuple[Inputs, Tensor]]) -> Results:
        """Return the score of each example, `correct`, (N,)."""
        scores = [self._task.judge(network.evaluated(x)[1], y).cpu() for x, y in batches]
        return {"correct": torch.cat(scores).float()}

    def count(self, results: Results) -> int:
        """Return the number of examples."""
        return len(results["correct"])

    def measure(self, results: Results) -> float:
        """Return the mean score."""
        return float(results["correct"].double().mean())

    def compare(self, before: Results, after: Results) -> Change | None:
        """Count the examples that are predicted worse and better, by the sign test."""
        first, second = before["correct"].float(), after["correct"].float()
        if len(first) != len(second):
            return None
        lost, won = int((second < first).sum()), int((second > first).sum())
        return Change(mcnemar(lost, won), f"{lost} lost, {won} won")


def mcnemar(lost: int, won: int) -> float:
    """Compute the one-sided exact McNemar test: how probable at least as many losses would be if both were as likely.

    Args:
        lost: Number of examples that only the first classifier has right.
        won: Number of examples that only the second one has right.
    """
    n = lost + won
    return float(sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n)
