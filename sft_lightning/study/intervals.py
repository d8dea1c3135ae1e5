"""Estimates and comparisons with their intervals, from a mean and its variance."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtr

from sft_lightning.tasks.intervals import LEVEL as LEVEL, find_share_limits, t_quantile

Verdict = Literal["helped", "hurt", "no evidence yet"]


@dataclass(frozen=True)
class Estimate:
    """Accuracy as a share, with its 95% interval.

    Args:
        mean: Mean accuracy over examples and repeats.
        low: Lower bound.
        high: Upper bound.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Difference of two accuracies as a share, with its 95% interval.

    Args:
        difference: Mean difference, above 0 if the first candidate is better.
        low: Lower bound.
        high: Upper bound.
        p_value: Two-sided p-value, below 0.05 exactly if the interval excludes 0.
        verdict: Verdict by the p-value.
        labels: Number of examples that were judged.
    """

    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict
    labels: int


def estimate_share(mean: float, size: float, degrees: float) -> Estimate:
    """Return a share with Wilson's interval, with Student's t in place of the normal quantile.

    Args:
        mean: Share.
        size: Number of independent examples that it is worth.
        degrees: Degrees of freedom.
    """
    return Estimate(mean, *find_share_limits(mean, size, degrees))


def compare_means(
    difference: float, variance: float, size: float, factor: float, degrees: float, labels: int
) -> Comparison:
    """Compare by the mean difference of paired examples, with a difference of 1 and one of -1 in addition.

    Args:
        difference: Mean difference.
        variance: Variance of the difference of an example.
        size: Number of equal examples that they are worth.
        factor: Factor of the variance of the mean.
        degrees: Degrees of freedom.
        labels: Number of examples that were judged.
    """
    center = size * difference / (size + 2)
    widened = (size * (max(0.0, variance) + difference**2) + 2) / (size + 2) - center**2
    error = float(np.sqrt(widened * factor / (size + 2)))
    reach = t_quantile(degrees) * error
    p_value = 2 * float(stdtr(degrees, -abs(center) / error))
    verdict: Verdict = "no evidence yet"
    if p_value < LEVEL:
        verdict = "helped" if center > 0 else "hurt"
    return Comparison(difference, max(-1.0, center - reach), min(1.0, center + reach), p_value, verdict, labels)
