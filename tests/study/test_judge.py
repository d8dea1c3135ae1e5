import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sft_lightning.study.fold_results import FoldResults
from sft_lightning.study.folds import Draw
from sft_lightning.study.judge import (
    Comparison,
    choose,
    choose_recipe,
    compare,
    compare_on_test,
    count_needed_labels,
    estimate_accuracy,
    estimate_chosen,
    score_choice,
)
from sft_lightning.utils.errors import InputError

Array = NDArray[Any]
T19, T9 = float(stats.t.ppf(0.975, 19)), float(stats.t.ppf(0.975, 9))
HALF = np.arange(20)[None] % 2  # every second example is right
PAIRS = [str(i // 2) for i in range(20)]


def folds_of(count: int, folds: int = 5, repeats: int = 1, unjudged: int = 0) -> Array:
    return np.tile(np.r_[np.arange(count) % folds, np.full(unjudged, -1)], (repeats, 1))


def reach_at_half(size: float, t: float = T19) -> float:
    """Half of Wilson's interval where half of the examples are right."""
    return t / (2 * float(np.sqrt(size + t**2)))


def differing(better: int, worse: int, count: int = 20, repeats: int = 1, folds: int = 5) -> Comparison:
    a, b = np.zeros((repeats, count)), np.zeros((repeats, count))
    a[:, :better], b[:, better : better + worse] = 1, 1
    return compare(a, b, folds_of(count, folds, repeats))


@pytest.mark.parametrize(
    ("folds", "unjudged", "size"),
    [
        (5, 0, 16),  # 20 / (1 + 4 / 16)
        (2, 0, 10),  # 20 / (1 + 10 / 10)
        (10, 0, 16),  # 20 / 1.25, not 20 / (1 + 2 / 18)
        (2, 10, 20 / 1.5),  # 10 are always learned from: 20 / (1 + 10 / 20)
    ],
)
def test_the_interval_is_that_of_wilson_for_fewer_examples(folds: int, unjudged: int, size: float) -> None:
    correct = np.c_[HALF, np.ones((1, unjudged))]
    estimate = estimate_accuracy(correct, folds_of(20, folds, unjudged=unjudged))
    reach = reach_at_half(size)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach))


def test_an_estimate_by_hand() -> None:
    correct = (np.arange(20) < 15)[None].astype(int)
    estimate = estimate_accuracy(correct, folds_of(20))
    # t = 2.0930, n = 16: (0.75 + 0.13690) / 1.27379 -+ 1.64313 * sqrt(0.1875 / 16 + 4.38058 / 1024)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.75, 0.48855, 0.90396), abs=2e-4)


def test_an_estimate_stays_within_0_and_1() -> None:
    right = estimate_accuracy(np.ones((3, 20)), folds_of(20, repeats=3))
    assert (right.mean, right.low, right.high) == pytest.approx((1, 16 / (16 + T19**2), 1))
    assert right.high <= 1
    wrong = estimate_accuracy(np.zeros((3, 20)), folds_of(20, repeats=3))
    assert (wrong.mean, wrong.low, wrong.high) == pytest.approx((0, 0, T19**2 / (16 + T19**2)))
    assert wrong.low >= 0


def test_repeats_are_averaged_and_do_not_count_as_examples() -> None:
    once, fold = estimate_accuracy(HALF, folds_of(20)), folds_of(20, repeats=7)
    assert estimate_accuracy(np.tile(HALF, (7, 1)), fold) == once
    one_right = np.zeros((7, 20))
    one_right[3] = 1
    assert estimate_accuracy(one_right, fold).mean == pytest.approx(1 / 7)


def test_groups_that_agree_widen_the_interval() -> None:
    agreeing = (np.arange(20) // 2 % 2)[None]
    estimate = estimate_accuracy(agreeing, folds_of(20), PAIRS)
    assert estimate.high - 0.5 == pytest.approx(reach_at_half(8, T9))
    opposed = estimate_accuracy(HALF, folds_of(20), PAIRS)
    assert opposed.high - 0.5 == pytest.approx(reach_at_half(16, T9))
    alone = estimate_accuracy(agreeing, folds_of(20), [str(i) for i in range(20)])
    assert alone == estimate_accuracy(agreeing, folds_of(20))


def test_groups_count_once_where_all_examples_are_right() -> None:
    estimate = estimate_accuracy(np.ones((1, 20)), folds_of(20), PAIRS)
    assert estimate.low == pytest.approx(8 / (8 + T9**2))


def test_groups_that_are_not_judged_do_not_count() -> None:
    correct, fold = np.c_[HALF, np.ones((1, 4))], folds_of(20, unjudged=4)
    estimate = estimate_accuracy(correct, fold, [*PAIRS, "x", "x", "y", "z"])
    assert estimate == estimate_accuracy(HALF, folds_of(20), PAIRS)


def test_a_comparison_by_hand() -> None:
    c = differing(6, 1)
    # (6 - 1) / 22, and (6 + 1 + 2) / 22 - 0.22727^2 = 0.35744, times 1.25 / 22 = 0.14251^2
    reach = T19 * 0.142510
    assert c.difference == pytest.approx(0.25)
    assert (c.low, c.high) == pytest.approx((0.227273 - reach, 0.227273 + reach), abs=1e-5)
    assert c.p_value == pytest.approx(2 * stats.t.sf(0.227273 / 0.142510, 19), abs=1e-5)
    assert (c.verdict, c.labels) == ("no evidence yet", 20)
    assert count_needed_labels(c) == int(20 * (reach / 0.227273) ** 2) + 1 == 35


def test_verdicts_follow_the_sign() -> None:
    assert differing(12, 0).verdict == "helped"
    hurt, helped = differing(2, 14), differing(14, 2)
    assert (helped.verdict, hurt.verdict) == ("helped", "hurt")
    assert (hurt.difference, hurt.low, hurt.high) == pytest.approx((-helped.difference, -helped.high, -helped.low))
    assert hurt.p_value == pytest.approx(helped.p_value)


@pytest.mark.parametrize("count", [20, 100])
def test_verdict_p_value_and_interval_agree(count: int) -> None:
    verdicts = set()
    for better in range(0, count + 1, 2):
        for worse in range(0, count + 1 - better, 5):
            c = differing(better, worse, count)
            assert c.low <= c.difference <= c.high
            assert (c.verdict != "no evidence yet") == (c.p_value < 0.05) == (c.low > 0 or c.high < 0)
            verdicts.add(c.verdict)
    assert verdicts == {"helped", "hurt", "no evidence yet"}


def test_few_discordant_examples_give_no_verdict() -> None:
    assert differing(5, 0).verdict == "no evidence yet"
    assert differing(6, 0, count=100).verdict == "no evidence yet"


def test_equal_candidates_are_never_settled() -> None:
    c = differing(0, 0)
    assert (c.difference, c.p_value, c.verdict) == (0, 1, "no evidence yet")
    assert c.low == pytest.approx(-c.high)
    assert c.low < 0
    assert count_needed_labels(c) is None


def test_repeats_that_disagree_weaken_a_difference() -> None:
    a, b = np.zeros((2, 20)), np.zeros((2, 20))
    a[0, :12] = 1
    c = compare(a, b, folds_of(20, repeats=2))
    assert c.difference == pytest.approx(0.3)
    error = np.sqrt(((12 * 0.25 + 2) / 22 - (6 / 22) ** 2) * 1.25 / 22)
    assert (c.low, c.high) == pytest.approx((6 / 22 - T19 * error, 6 / 22 + T19 * error))


def test_a_comparison_knows_groups_and_unjudged_examples() -> None:
    a, b = np.zeros((1, 24)), np.zeros((1, 24))
    a[:, :8], a[:, 20:] = 1, 1
    fold = folds_of(20, unjudged=4)
    c = compare(a, b, fold, [*PAIRS, "x", "x", "y", "z"])
    assert (c.labels, c.difference) == (20, 0.4)
    error = np.sqrt(((8 + 2) / 22 - (8 / 22) ** 2) * 1.25 * 2 / 22)
    assert (c.low, c.high) == pytest.approx((8 / 22 - T9 * error, 8 / 22 + T9 * error))
    assert c.low < compare(a, b, fold).low


def test_more_labels_settle_a_comparison_about_when_promised() -> None:
    needed = count_needed_labels(differing(6, 1))
    assert needed is not None
    rate = needed / 20
    assert differing(round(6 * rate), round(rate), needed).p_value == pytest.approx(0.05, abs=0.03)


def test_settled_and_hopeless_comparisons_need_no_labels() -> None:
    assert count_needed_labels(differing(12, 0)) is None
    assert count_needed_labels(Comparison(0.0001, -0.1, 0.1002, 0.99, "no evidence yet", 100)) is None
    assert count_needed_labels(Comparison(0.001, -0.099, 0.101, 0.98, "no evidence yet", 100)) == 1_000_001 - 1


def test_the_first_of_equal_scores_is_chosen() -> None:
    assert choose([0.1, 0.3, 0.2]) == 1
    assert choose([0.1, 0.3, 0.1 + 0.2, 0.3]) == 1
    assert choose([0.29999, 0.3]) == 1
    assert choose([float("nan"), -2.0, float("nan"), -1.0]) == 3
    for scores in ([], [float("nan")]):
        with pytest.raises(InputError, match="has a score"):
            choose(scores)


def test_no_example_takes_part_in_the_choice_that_it_is_scored_by() -> None:
    first, second = np.repeat([1, 0], 10), np.repeat([0, 1], 10)
    fold = np.repeat([0, 1], 10)[None]
    correct = np.stack([first, second])[:, None]
    assert estimate_chosen(correct, fold).mean == 0  # the other half recommends the wrong one
    assert estimate_accuracy(correct[0], fold).mean == 0.5


def test_the_estimate_of_the_chosen_is_that_of_a_clear_winner_or_of_the_first() -> None:
    fold = folds_of(20, repeats=2)
    half = np.tile(HALF, (2, 1))
    assert estimate_chosen(np.stack([np.zeros((2, 20)), np.ones((2, 20))]), fold).mean == 1
    only = estimate_chosen(half[None], fold, PAIRS)
    assert only == estimate_accuracy(half, fold, PAIRS)
    failed = np.full((2, 20), np.nan)
    assert estimate_chosen(np.stack([failed, half]), fold) == estimate_accuracy(half, fold)


def test_unjudged_examples_and_all_repeats_decide_on_the_chosen() -> None:
    fold = folds_of(20, 2, repeats=2, unjudged=30)
    first, second = np.zeros((2, 50)), np.zeros((2, 50))
    first[0, :20] = 1  # right in one repeat of two
    second[:, 20:] = 1  # right only on what is not judged
    second[1, :8] = 1  # the best of the second repeat alone
    chosen = estimate_chosen(np.stack([second, first]), fold)
    assert chosen == estimate_accuracy(first, fold)


@pytest.mark.parametrize("groups", [None, PAIRS])
def test_too_few_examples_are_an_error(groups: list[str] | None) -> None:
    fold = np.full((1, 20), -1)
    fold[0, : 1 if groups is None else 2] = 0
    with pytest.raises(InputError, match="fewer than 2 groups can be judged: add labels"):
        estimate_accuracy(HALF, fold, groups)


def test_arrays_that_do_not_agree_are_an_error() -> None:
    fold = folds_of(20, repeats=2)
    with pytest.raises(ValueError, match="shape"):
        estimate_accuracy(HALF, fold)
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((2, 20)), HALF, fold)
    with pytest.raises(ValueError, match="shape"):
        estimate_chosen(HALF[None], fold)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        estimate_accuracy(np.full((2, 20), np.nan), fold)
    fold[1, 0] = -1
    with pytest.raises(ValueError, match="in one repeat"):
        estimate_accuracy(np.zeros((2, 20)), fold)


def test_two_models_on_the_same_test_images() -> None:
    a, b = np.zeros(100), np.zeros(100)
    a[:30], b[20:35] = 1, 1  # right alone: 20 and 5
    compared = compare_on_test(a, b)
    assert compared.difference == pytest.approx(0.15)
    assert compared.p_value == pytest.approx(0.0040772, rel=1e-4)  # 2 P(X <= 5), X ~ Binomial(25, 1/2)
    center, error = 15 / 102, math.sqrt((26 - 225 / 102) / 102**2)
    assert (compared.low, compared.high) == pytest.approx((center - 1.959964 * error, center + 1.959964 * error))
    assert compared.verdict == "helped"
    assert compare_on_test(b, a).verdict == "hurt"
    assert compare_on_test(a, a).verdict == "no evidence yet"
    assert compare_on_test(a, a).low < 0 < compare_on_test(a, a).high


def test_equal_weights_change_nothing() -> None:
    rng, fold = np.random.default_rng(0), folds_of(20, repeats=2)
    a, b = (rng.integers(0, 2, (2, 20)).astype(float) for _ in range(2))
    for weights in (np.ones(20), np.full(20, 0.3)):
        plain, weighted = estimate_accuracy(a, fold, PAIRS), estimate_accuracy(a, fold, PAIRS, weights)
        assert [weighted.mean, weighted.low, weighted.high] == pytest.approx([plain.mean, plain.low, plain.high])
        one, other = compare(a, b, fold, PAIRS), compare(a, b, fold, PAIRS, weights)
        assert [other.difference, other.low, other.p_value] == pytest.approx([one.difference, one.low, one.p_value])
        assert other.labels == one.labels == 20


def test_an_estimate_counts_examples_by_their_weights() -> None:
    weights = np.where(np.arange(20) < 10, 3.0, 1.0)
    correct = np.where(np.arange(20) < 10, 1.0, 0.0)[None]
    estimate = estimate_accuracy(correct, folds_of(20), weights=weights)
    assert estimate.mean == pytest.approx(0.75)
    size = 40**2 / (10 * 9 + 10)  # 16 equal examples have a mean of the same variance
    t = float(stats.t.ppf(0.975, size - 1))
    size /= 1.25
    reach = t / (1 + t**2 / size) * math.sqrt(0.75 * 0.25 / size + t**2 / (4 * size**2))
    assert estimate.high - estimate.low == pytest.approx(2 * reach)


def test_weighted_intervals_hold_as_often_as_they_say() -> None:
    """Half of the labels are of a class of 9 in 10 examples, which is recognized less often."""
    rng, fold, held = np.random.default_rng(0), folds_of(60), 0
    common = np.arange(60) < 30
    weights, truth = np.where(common, 0.9 / 30, 0.1 / 30), 0.9 * 0.6 + 0.1 * 0.95
    plain = 0
    for _ in range(300):
        correct = (rng.random((1, 60)) < np.where(common, 0.6, 0.95)).astype(float)
        estimate, unweighted = estimate_accuracy(correct, fold, weights=weights), estimate_accuracy(correct, fold)
        held += estimate.low <= truth <= estimate.high
        plain += unweighted.low <= truth <= unweighted.high
    assert held >= 285
    assert plain < 150


def test_weights_decide_the_choice_and_the_verdict() -> None:
    common = np.arange(40) < 20
    good_at_common, good_at_rare = common.astype(float)[None], (~common).astype(float)[None]
    both, fold = np.stack([good_at_rare, good_at_common]), folds_of(40)
    weights = np.where(common, 9.0, 1.0)
    assert estimate_chosen(both, fold, weights=weights).mean == pytest.approx(0.9)
    assert estimate_chosen(both, fold, weights=10 - weights).mean == pytest.approx(0.9)
    found = compare(good_at_common, good_at_rare, fold, weights=weights)
    assert found.verdict == "helped"
    assert found.difference == pytest.approx(0.8)
    assert compare(good_at_common, good_at_rare, fold).verdict == "no evidence yet"


@pytest.mark.parametrize("weights", [np.zeros(20), np.full(20, -1.0), np.full(20, np.nan)])
def test_weights_that_mean_nothing_are_an_error(weights: Array) -> None:
    with pytest.raises(ValueError, match="weights are negative"):
        estimate_accuracy(HALF.astype(float), folds_of(20), weights=weights)


def test_a_default_stays_unless_another_is_ahead_by_its_standard_error() -> None:
    fold = folds_of(20)

    def score(right: int, lost: int = 0) -> Array:
        """Right on `right` further examples than the default, and wrong on `lost` of those that it has right."""
        row = np.zeros(20)
        row[lost : 10 + right] = 1
        return row[None]

    def chosen(right: int, lost: int, default: int | None = 0, groups: list[str] | None = None) -> int:
        return choose_recipe(np.stack([score(0), score(right, lost)]), fold, groups, default=default)

    # The lead is (right - lost) / 20, and its standard error sqrt(1.25 (right + lost - (right - lost)^2 / 20)) / 20.
    assert chosen(1, 0) == 0  # 1 against 1.09
    assert chosen(2, 0) == 1  # 2 against 1.5
    assert chosen(4, 2) == 0  # 2 against 2.69
    assert chosen(5, 2) == 1  # 3 against 2.87
    assert chosen(1, 0, default=None) == 1
    assert chosen(0, 2, default=1) == 0  # 2 against 1.5
    assert chosen(0, 1, default=1) == 1
    assert chosen(2, 0, groups=PAIRS) == 0  # both of one group: 2 against 2.1
    assert choose_recipe(np.stack([score(0), score(0)]), fold, default=1) == 1


def test_the_estimate_of_a_choice_prefers_the_default_on_other_folds() -> None:
    fold, rng = folds_of(40, repeats=2), np.random.default_rng(1)
    many = rng.integers(0, 2, (12, 2, 40)).astype(float)  # by chance, one is ahead
    plain, preferred = score_choice(many, fold), score_choice(many, fold, default=3)
    expected = np.zeros((2, 40))
    for r in range(2):
        for k in range(5):
            inside = fold[r] == k
            values = many.mean(1)[:, ~inside]
            best = int(values.mean(1).argmax())
            lead = values[best] - values[3]
            error = lead.std() * math.sqrt(1.25 / len(lead))
            expected[r, inside] = many[best if lead.mean() > error else 3, r, inside]
    assert (preferred == expected).all()
    assert (plain != preferred).any()
    assert estimate_chosen(many, fold, default=3).mean == pytest.approx(preferred.mean())


def wilson(mean: float, size: float, t: float) -> tuple[float, float]:
    reach = t / (1 + t**2 / size) * math.sqrt(mean * (1 - mean) / size + t**2 / (4 * size**2))
    return (mean + t**2 / (2 * size)) / (1 + t**2 / size) - reach, reach


def test_scores_that_vary_less_than_answers_have_a_narrower_interval() -> None:
    scores = np.tile([0.6, 0.8], 10)[None]
    estimate = estimate_accuracy(scores, folds_of(20))
    # With half an example of 0 and half of 1, the mean is 14.5 / 21, and the variance 10.5 / 21 - 0.69048^2 = 0.02324.
    share = (10.5 / 21 - (14.5 / 21) ** 2) / (14.5 / 21 * (6.5 / 21))
    low, reach = wilson(0.7, 16 / share, T19)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.7, low, low + 2 * reach))
    assert 2 * reach < 0.6 * (estimate_accuracy((np.arange(20) < 14)[None], folds_of(20)).high - 0.46)


def test_answers_that_repeats_average_stay_right_or_wrong() -> None:
    rng, fold = np.random.default_rng(0), folds_of(20, repeats=4)
    correct = rng.integers(0, 2, (4, 20)).astype(float)
    mean = float(correct.mean())
    low, reach = wilson(mean, 16, T19)
    by_repeats = estimate_accuracy(correct, fold)
    assert (by_repeats.low, by_repeats.high) == pytest.approx((low, low + 2 * reach))
    by_means = estimate_accuracy(correct.mean(0)[None], fold[:1], squares=(correct**2).mean(0)[None])
    assert (by_means.low, by_means.high) == pytest.approx((low, low + 2 * reach))
    assert estimate_accuracy(correct.mean(0)[None], fold[:1]).high < by_means.high - 0.05


@pytest.mark.parametrize("scores", [(0.0, 1.0), (0.4, 0.8)])
def test_means_over_the_seeds_of_a_study_have_the_interval_of_their_scores(scores: tuple[float, float]) -> None:
    ids, fold = [str(i) for i in range(20)], folds_of(20)
    draws = {(20, seed): Draw(ids, fold[0], None, [], []) for seed in range(2)}
    chosen = np.random.default_rng(0).integers(0, 2, (2, 20))
    by_seed = {
        ("m", 20, seed): {name: scores[k] for name, k in zip(ids, chosen[seed], strict=True)} for seed in range(2)
    }
    found = FoldResults(draws, by_seed).estimate_all()["m", 20]
    expected = estimate_accuracy(np.array(scores)[chosen], np.tile(fold, (2, 1)))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_equal_scores_do_not_give_certainty() -> None:
    estimate = estimate_accuracy(np.full((1, 20), 0.8), folds_of(20))
    assert 0.05 < estimate.high - estimate.low < 0.25
    assert estimate.low < 0.8 < estimate.high <= 1
    nearly = estimate_accuracy(np.full((1, 20), 0.999), folds_of(20))
    assert nearly.low < 0.95


@pytest.mark.parametrize("count", [20, 60])
@pytest.mark.parametrize("kind", ["masks", "sets"])
def test_intervals_of_scores_hold_as_often_as_they_say(kind: str, count: int) -> None:
    """They hold somewhat more often, since these scores come without training sets that overlap."""
    rng, studies = np.random.default_rng(0), 200

    def draw(*size: int) -> Array:
        if kind == "sets":  # nearly all are right
            return rng.choice([0, 0.5, 2 / 3, 1], p=[0.03, 0.02, 0.02, 0.93], size=size)
        return np.where(rng.random(size) < 0.1, 0.3 * rng.beta(1, 5, size), rng.beta(6, 2, size))  # some fail

    truth, fold, pairs = float(draw(10**6).mean()), folds_of(count), [str(i // 2) for i in range(count)]
    for groups, weights in ((None, None), (pairs, rng.uniform(0.5, 1.5, count))):
        found = [estimate_accuracy(one, fold, groups, weights) for one in draw(studies, 1, count)]
        held = sum(one.low <= truth <= one.high for one in found)
        assert 0.93 * studies <= held <= 0.99 * studies
