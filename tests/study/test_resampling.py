"""Intervals of drawn examples: those of a mean where the score is one, and what groups and few draws do to them."""

import numpy as np
import pytest

from sft_lightning.study.judge import compare, estimate_accuracy
from sft_lightning.study.resampling import Draws

FOLD = np.arange(40)[None] % 5
FACTOR = 1.25


def average(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    made: np.ndarray = weights @ scores / weights.sum(1)
    return made


def test_a_mean_gets_the_interval_of_a_mean() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (draw.random(40) < share for share in (0.9, 0.4))
    draws = Draws(40, None, FACTOR, 0)
    assert draws.number == 500
    a, b = (average(draws.weights, scores.astype(float)) for scores in (ours, theirs))
    expected, found = estimate_accuracy(ours[None], FOLD), draws.estimate(a)
    assert found.mean == expected.mean
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    paired, other = draws.compare(a, b), compare(ours[None], theirs[None], FOLD)
    assert paired.difference == pytest.approx(other.difference)
    assert (paired.low, paired.high) == pytest.approx((other.low, other.high), abs=0.02)
    assert paired.verdict == other.verdict == "helped"
    assert draws.compare(b, a).verdict == "hurt"
    assert draws.is_ahead(a, b)
    assert not draws.is_ahead(b, a)


def test_equal_scores_settle_nothing() -> None:
    draws = Draws(6, None, FACTOR, 0)
    nothing = np.zeros(draws.number + 1)
    estimate, comparison = draws.estimate(nothing), draws.compare(nothing, nothing)
    assert (estimate.mean, estimate.low) == (0, 0)
    assert estimate.high > 0.4
    assert comparison.verdict == "no evidence yet"
    assert comparison.low < -0.3 < 0.3 < comparison.high
    assert not draws.is_ahead(nothing, nothing)


def test_examples_of_a_group_are_drawn_together_and_widen_the_interval() -> None:
    scores = np.repeat([0.9, 0.2, 0.8, 0.4, 0.7], 8)
    grouped = Draws(40, [str(k // 8) for k in range(40)], FACTOR, 0)
    assert grouped.units == 5
    assert all(len({*row[8 * k : 8 * k + 8]}) == 1 for row in grouped.weights for k in range(5))
    alone = Draws(40, None, FACTOR, 0)
    wide, narrow = (draws.estimate(average(draws.weights, scores)) for draws in (grouped, alone))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_ahead_is_by_more_than_a_standard_error() -> None:
    draw = np.random.default_rng(1)
    draws = Draws(30, None, FACTOR, 0)
    ours, theirs = (average(draws.weights, draw.random(30)) for _ in range(2))
    error = (ours - theirs)[1:].std() * FACTOR**0.5
    level = ours - theirs - (ours - theirs)[0]  # as uneven, without a lead
    assert draws.is_ahead(theirs + level + 1.1 * error, theirs)
    assert not draws.is_ahead(theirs + level + 0.9 * error, theirs)


def test_many_examples_are_drawn_less_often() -> None:
    assert Draws(250, None, 1.0, 0).number == 200
    assert Draws(5000, None, 1.0, 0).number == 100
