"""Intervals of shares of examples, some of which belong together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sft_lightning.tasks.classification_metrics import wilson

LEVEL = 0.05
_SAME = 1e-9  # values that differ by rounding are equal

Array = NDArray[Any]


def t_quantile(degrees: float) -> float:
    """Return Student's t that 97.5 % of its distribution lie below.

    Args:
        degrees: Degrees of freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - LEVEL / 2))


def find_share_limits(mean: float, size: float, degrees: float) -> tuple[float, float]:
    """Return the limits of a share by Wilson's interval, with Student's t in place of the normal quantile.

    Args:
        mean: Share.
        size: Number of independent examples that it is worth.
        degrees: Degrees of freedom.
    """
    t = t_quantile(degrees)
    center = (mean + t**2 / (2 * size)) / (1 + t**2 / size)
    reach = t / (1 + t**2 / size) * np.sqrt(mean * (1 - mean) / size + t**2 / (4 * size**2))
    return max(0.0, float(center - reach)), min(1.0, float(center + reach))


def compute_design_effect(values: Array, unit: Array, w: Array) -> float:
    """Return what groups multiply the variance of a weighted mean by, at least 1 (Kish 1965).

    Args:
        values: Value of each example, (N,).
        unit: Number of its group, (N,).
        w: Weight of each example, (N,).
    """
    errors = w * (values - (w * values).sum() / w.sum())
    if float((errors**2).sum()) < _SAME:  # all values are equal: as if those of a group always agreed
        errors = w
    return max(1.0, float((np.bincount(unit, errors) ** 2).sum()) / float((errors**2).sum()))


def has_groups(groups: Sequence[str] | None) -> bool:
    """Return whether some examples belong together.

    Args:
        groups: Group of each example, or None.
    """
    return groups is not None and len(set(groups)) < len(groups)


def estimate_interval(is_right: Tensor, groups: Sequence[str] | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the share of examples that are right: Wilson's (1927).

    Slices of one patient are right or wrong together, so that they are worth fewer examples than there are.

    Args:
        is_right: Whether each example is right, boolean, (N,), N > 0.
        groups: Group of each example, such as its patient, or None.
    """
    values = is_right.double().cpu().numpy()
    mean, count = float(values.mean()), len(values)
    if groups is None or not has_groups(groups):
        return wilson(mean, count)
    names, unit = np.unique(np.asarray(groups), return_inverse=True)
    # A single group says as much as a single example, whatever its examples.
    effect = compute_design_effect(values, unit, np.ones(count)) if len(names) > 1 else float(count)
    return find_share_limits(mean, count / effect, max(1, len(names) - 1))
