import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sft_lightning.study.statistics import (
    Comparison,
    apply_holm,
    compare,
    confidence_interval,
    format_comparison,
    format_headline,
)
from sft_lightning.utils.errors import InputError

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
STUDIES = 1000
ABOUT_5_PERCENT = 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)  # two standard errors of the simulation

SYMMETRIC: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size=size),
    "of two skewed accuracies": lambda rng, size: rng.exponential(size=size) - rng.exponential(size=size),
}
SKEWED: dict[str, Draw] = {  # a rare large loss, and mostly a small gain
    "gamma": lambda rng, size: 4 - rng.gamma(4, size=size),
    "log-normal": lambda rng, size: math.exp(0.125) - rng.lognormal(sigma=0.5, size=size),
}


def judged(differences: list[float]) -> Comparison:
    return compare("ours", 100, dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))


def simulated(draw: Draw, n: int, effect: float = 0.0) -> list[Comparison]:
    """Studies with a spread of about 2 points, and a true effect in deviations of a normal difference."""
    drawn = 0.02 * (draw(np.random.default_rng(n), (STUDIES, n)) + effect)
    return [judged(differences.tolist()) for differences in drawn]


def share(studies: list[Comparison], verdict: str) -> float:
    return sum(c.verdict == verdict for c in studies) / len(studies)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("name", [*SYMMETRIC, *SKEWED])
def test_methods_without_an_effect_rarely_get_a_verdict(name: str, n: int) -> None:
    draw = {**SYMMETRIC, **SKEWED}[name]
    assert share(simulated(draw, n), "helped") <= ABOUT_5_PERCENT
    assert share(simulated(lambda rng, size: -draw(rng, size), n), "hurt") <= ABOUT_5_PERCENT


@pytest.mark.parametrize("n", [3, 5, 10])
def test_false_verdicts_are_as_rare_as_the_interval_promises(n: int) -> None:
    studies = simulated(SYMMETRIC["normal"], n)
    assert 0.01 < share(studies, "helped") + share(studies, "hurt") <= 0.05


@pytest.mark.parametrize("n", [3, 5, 10])
def test_skewed_differences_mislead_less_often_than_student(n: int) -> None:
    drawn = 1 - np.random.default_rng(n).exponential(size=(STUDIES, n))
    student = stats.ttest_1samp(drawn, 0, axis=1)
    fooled = float(((student.pvalue < 0.05) & (student.statistic > 0)).mean())
    ours = share([judged(differences.tolist()) for differences in drawn], "helped")
    assert fooled > 0.085
    assert ours < 0.75 * fooled
    assert ours < 0.085


@pytest.mark.parametrize(("n", "found"), [(3, 0.85), (5, 0.9), (10, 0.95)])
def test_large_effects_get_a_verdict(n: int, found: float) -> None:
    effect = 3 if n > 5 else 10
    assert share(simulated(SYMMETRIC["normal"], n, effect), "helped") > found
    assert share(simulated(SYMMETRIC["normal"], n, -effect), "hurt") > found


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_truth_in_95_percent(n: int) -> None:
    studies = simulated(SYMMETRIC["normal"], n, 1.0)
    assert 0.945 < np.mean([c.low is not None and c.high is not None and c.low < 0.02 < c.high for c in studies]) < 0.98


def test_symmetric_differences_give_the_interval_of_student() -> None:
    values = [0.01, 0.02, 0.03, 0.04, 0.05]
    student = stats.t.interval(0.95, 4, 0.03, stats.sem(values))
    assert confidence_interval(values) == pytest.approx((0.03, *student))
    c = judged(values)
    assert (c.low, c.high) == pytest.approx(student)
    assert c.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert c.deviation == pytest.approx(np.std(values, ddof=1))
    assert (c.seeds, c.verdict, c.more_seeds) == (5, "helped", None)


def test_the_bound_on_the_skewed_side_is_that_of_hall() -> None:
    values = [-0.30, 0.02, 0.03, 0.05, 0.06, 0.07]
    n, mean, deviation, g = 6, np.mean(values), np.std(values, ddof=1), float(stats.skew(values, bias=False))
    low, high = confidence_interval(values)[1:]
    student = stats.t.interval(0.95, n - 1, mean, deviation / math.sqrt(n))
    assert high == pytest.approx(student[1])
    assert low is not None
    assert low < student[0]
    ratio = (mean - low) / deviation  # the transformation of the bound is the quantile
    transformed = ratio + g * ratio**2 / 3 + g**2 * ratio**3 / 27 + g / (6 * n)
    assert transformed == pytest.approx(stats.t.ppf(0.975, n - 1) / math.sqrt(n))
    mirrored = confidence_interval([-value for value in values])
    assert mirrored == pytest.approx((-mean, -student[1], -low))


@pytest.mark.parametrize("n", [3, 4, 10])
def test_verdict_p_value_and_interval_agree(n: int) -> None:
    studies = simulated(SKEWED["log-normal"], n, 0.6)
    assert {c.verdict for c in studies} == {"helped", "no evidence yet"}
    for c in studies:
        assert c.low is not None
        assert c.high is not None
        assert c.p_value is not None
        assert c.low <= c.mean_difference <= c.high
        assert 0 < c.p_value <= 1
        excluded = c.low > 0 or c.high < 0
        assert excluded == (c.p_value < 0.05) == (c.verdict != "no evidence yet")
        assert c.verdict != "helped" or c.low > 0


def test_only_seeds_of_both_methods_are_paired() -> None:
    ours, baseline = {1: 0.80, 2: 0.71, 3: 0.92, 9: 0.1}, {3: 0.90, 1: 0.77, 2: 0.69, 7: 0.9}
    c = compare("ours", 100, ours, baseline)
    assert c.seeds == 3
    assert c.mean_difference == pytest.approx((0.03 + 0.02 + 0.02) / 3)
    assert c.verdict == "helped"
    shuffled = compare("ours", 100, {1: 0.71, 2: 0.92, 3: 0.80}, baseline)
    assert shuffled.mean_difference == pytest.approx(c.mean_difference)
    assert shuffled.verdict == "no evidence yet"
    assert shuffled.low is not None
    assert shuffled.low < 0


def test_methods_without_a_common_seed_are_refused() -> None:
    with pytest.raises(InputError, match="'ours' with 100 labels shares no finished seed"):
        compare("ours", 100, {1: 0.5}, {2: 0.5})


@pytest.mark.parametrize("differences", [[0.5], [0.5, 0.51]])
def test_one_or_two_seeds_give_no_verdict(differences: list[float]) -> None:
    c = judged(differences)
    assert (c.low, c.high, c.p_value, c.verdict, c.more_seeds) == (None, None, None, "no evidence yet", None)
    assert format_comparison(c).endswith("; a verdict needs at least 3 seeds.")
    assert confidence_interval(differences) == (c.mean_difference, None, None)


def test_equal_accuracies_are_no_evidence_for_any_number_of_seeds() -> None:
    c = judged([0.0] * 20)
    assert (c.low, c.p_value, c.verdict, c.more_seeds) == (None, 1.0, "no evidence yet", None)
    assert format_comparison(c) == "With 100 labels, no evidence yet for ours: +0.0 points (the same for all 20 seeds)."


def test_equal_differences_are_judged_by_the_sign_test() -> None:
    float32 = [0.1, 0.10000001, 0.09999999]  # equal but for rounding
    c = judged(float32)
    assert (c.deviation, c.low, c.p_value, c.verdict, c.more_seeds) == (0.0, None, 0.25, "no evidence yet", 3)
    assert format_comparison(c) == (
        "With 100 labels, no evidence yet for ours: +10.0 points (the same for all 3 seeds); about 3 more seeds would "
        "settle it if the difference stays."
    )
    assert judged([0.1] * 5).more_seeds == 1
    assert judged([0.1] * 6).verdict == "helped"
    assert judged([-0.1] * 6).verdict == "hurt"
    assert confidence_interval([0.5, 0.5, 0.5]) == (0.5, None, None)


def test_a_difference_of_one_image_is_a_spread() -> None:
    assert judged([0.1, 0.1, 0.10001]).verdict == "helped"


def test_more_seeds_is_the_smallest_number_that_clears_the_t_interval() -> None:
    c = judged([0.03, -0.01, 0.01, 0.02])
    mean, deviation = 0.0125, float(np.std([0.03, -0.01, 0.01, 0.02], ddof=1))

    def clear(n: int) -> bool:
        return bool(stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) < mean)

    assert c.more_seeds is not None
    assert clear(4 + c.more_seeds)
    assert not clear(4 + c.more_seeds - 1)
    assert c.more_seeds > 1


def test_one_more_seed_is_asked_for_if_only_the_skewness_is_unclear() -> None:
    values = [0.012, 0.05, 0.052, 0.055]
    assert stats.ttest_1samp(values, 0).pvalue < 0.05
    skewed = judged(values)
    assert (skewed.verdict, skewed.more_seeds) == ("no evidence yet", 1)


def test_a_difference_too_small_to_settle_is_reported() -> None:
    c = judged([0.1, -0.1, 0.001])
    assert c.more_seeds is None
    assert format_comparison(c).endswith("; a difference this small would take more than 1000 more seeds to settle.")
    assert judged([0.1, -0.1, 0.0]).more_seeds is None


def test_comparisons_are_formatted_as_sentences() -> None:
    c = Comparison("autoencoder", 100, 5, 0.021, 0.01, 0.004, 0.038, 0.02, "helped", None)
    assert format_comparison(c) == (
        "With 100 labels, autoencoder helped: +2.1 points (95% interval +0.4 to +3.8, 5 seeds)."
    )
    hurt = replace(c, budget=1, mean_difference=-0.021, low=-0.038, high=-0.0001, verdict="hurt")
    assert (
        format_comparison(hurt) == "With 1 label, autoencoder hurt: -2.1 points (95% interval -3.8 to +0.0, 5 seeds)."
    )
    open_ = replace(c, seeds=3, mean_difference=0.009, low=-0.012, high=0.03, verdict="no evidence yet", more_seeds=9)
    assert format_comparison(open_) == (
        "With 100 labels, no evidence yet for autoencoder: +0.9 points (95% interval -1.2 to +3.0, 3 seeds); "
        "about 9 more seeds would settle it if the difference stays."
    )
    assert "about 1 more seed would" in format_comparison(replace(open_, more_seeds=1))
    together = [open_, hurt, replace(open_, method="c", mean_difference=0.2), replace(c, method="a")]
    assert format_headline(together) == (
        "With 100 labels and 3 to 5 seeds: a (+2.1) helped; autoencoder (-2.1) hurt; no evidence yet for c (+20.0) and "
        "autoencoder (+0.9)."
    )


def test_holm_matches_a_correction_by_hand() -> None:
    base = judged([0.01, 0.02, 0.03, 0.04, 0.05])
    given = [replace(base, method=name, p_value=p) for name, p in [("a", 0.03), ("b", 0.012), ("c", 0.04)]]
    other = replace(base, budget=400, p_value=0.04)
    few = replace(judged([0.5]), method="few")
    found = apply_holm([*given, other, few])
    assert [c.method for c in found] == ["a", "b", "c", "ours", "few"]
    assert [c.p_value for c in found[:4]] == pytest.approx([0.06, 0.036, 0.06, 0.04])  # c: not below a's
    assert [c.verdict for c in found] == ["no evidence yet", "helped", "no evidence yet", "helped", "no evidence yet"]
    assert [c.together for c in found] == [3, 3, 3, 1, 1]
    assert (found[0].low, found[0].high) == (base.low, base.high)
    assert found[0].more_seeds is not None
    assert "which chance could give, as 3 methods were compared; about" in format_comparison(found[0])
    assert found[4] == few
    assert max(c.p_value or 0 for c in apply_holm([replace(base, p_value=0.6)] * 3)) == 1.0


def test_the_correction_asks_for_more_seeds() -> None:
    alone = judged([0.03, -0.01, 0.01, 0.02])
    together = apply_holm([alone] * 4)[0]
    assert alone.more_seeds is not None
    assert together.more_seeds is not None
    assert alone.deviation is not None
    n = 4 + together.more_seeds
    half_widths = [stats.t.ppf(1 - 0.05 / 8, m - 1) * alone.deviation / math.sqrt(m) for m in (n - 1, n)]
    assert half_widths[0] >= alone.mean_difference > half_widths[1]
    assert together.more_seeds > alone.more_seeds
    assert "methods were compared" not in format_comparison(together)  # the interval alone gives no evidence either


def test_holm_keeps_the_chance_of_any_false_verdict_at_5_percent() -> None:
    rng = np.random.default_rng(0)
    plain = any_corrected = 0
    for differences in 0.02 * rng.normal(size=(300, 6, 5)):
        studies = [judged(of.tolist()) for of in differences]
        plain += any(c.verdict != "no evidence yet" for c in studies)
        any_corrected += any(c.verdict != "no evidence yet" for c in apply_holm(studies))
    assert plain / 300 > 0.12
    assert any_corrected / 300 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)
