"""Threshold of scores from normal examples alone, with the rate of false alarms that it promises."""

import math
from typing import ClassVar, NamedTuple

from scipy import stats
from torch import Tensor

from sft_lightning.classifiers.base import FittedModule
from sft_lightning.utils.errors import InputError

CONFIDENCE = 0.95


class Promise(NamedTuple):
    """What is known of the false alarms of a threshold that is a score of one of n held-out normal examples.

    Attributes:
        threshold: Score above which an example counts as defective.
        examples: Number n of held-out normal examples.
        above: Number of these whose score is above the threshold.
        expected: Expected rate of false alarms, over the choice of these examples and of a further one.
        bound: Rate that the threshold exceeds for one choice of these examples in twenty at most.
    """

    threshold: float
    examples: int
    above: int
    expected: float
    bound: float

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4g}, exceeded by {self.above:,} of {self.examples:,} held-out normal examples"
            f": false alarms are expected for {self.expected:.1%} of normal examples, and for at most {self.bound:.1%} "
            "with 95% confidence"
        )


class AlarmThreshold(FittedModule):
    """Threshold of a stated rate of false alarms, an order statistic of scores of held-out normal examples.

    Of n + 1 exchangeable scores, each is equally likely to be the k-th smallest one. A further normal example exceeds
    the k-th smallest of n with a probability of at most (n + 1 - k) / (n + 1), whatever the distribution of the scores
    (Wilks 1941, "Determination of Sample Sizes for Setting Tolerance Limits"; Vovk et al. 2005 for conformal
    prediction). The rate of the threshold at hand has the distribution Beta(n + 1 - k, k), or is lower where scores
    are equal.

    Attributes:
        normal_scores: Scores of the held-out normal examples in ascending order, (n,).
        normal_peaks: Highest score of a place in each of their maps, in ascending order, (n,).
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ("normal_scores", "normal_peaks")
    constant_buffers: ClassVar[tuple[str, ...]] = fitted_buffers
    normal_scores: Tensor
    normal_peaks: Tensor

    def __init__(self, rate: float) -> None:
        """Keep the rate.

        Args:
            rate: Largest expected rate of false alarms, above 0 and below 1.

        Raises:
            InputError: The rate is out of its range.
        """
        super().__init__()
        if not 0 < rate < 1:
            raise InputError(f"false_alarm_rate is {rate}: give a share above 0 and below 1, such as 0.05")
        self.rate = rate

    def fit(self, scores: Tensor, peaks: Tensor) -> None:
        """Keep the scores of held-out normal examples.

        Args:
            scores: Scores, (n,).
            peaks: Highest score of a place in each map, (n,).
        """
        self.normal_scores, self.normal_peaks = scores.sort().values, peaks.sort().values

    @property
    def needed(self) -> int:
        """Number of normal examples from which on some threshold keeps the rate."""
        return math.ceil(1 / self.rate - 1 - 1e-9)

    @property
    def promise(self) -> Promise:
        """The threshold and what it promises.

        Raises:
            InputError: Scores of normal examples are missing.
        """
        count = len(self.normal_scores)
        if not count:
            raise InputError("the threshold is not set: let the training reach a validation or its end")
        rank = min(count, math.ceil((count + 1) * (1 - self.rate) - 1e-9))
        threshold = self.normal_scores[rank - 1]
        above = int((self.normal_scores > threshold).sum())
        bound = float(stats.beta.ppf(CONFIDENCE, count + 1 - rank, rank))
        return Promise(float(threshold), count, above, (count + 1 - rank) / (count + 1), bound)
