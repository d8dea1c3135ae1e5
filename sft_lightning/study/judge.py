"""Judge candidates by cross-fitting, where all labels are needed for training and none is left for a test.

R times, the N labeled examples are divided into K folds, the same for all candidates. Each candidate predicts each fold
after training on the others, so that every example is predicted R times by models that have not seen it.

**Interval of an accuracy.** Wilson's interval (1927) on the mean over the examples, with Student's t in place of the
normal quantile, and with fewer examples than there are: N / (1 + n_test / n_train), at most N / 1.25. This factor is
that of Nadeau & Bengio 2003, "Inference for the Generalization Error", and accounts for training sets that overlap.
Its lower limit is for 10 folds and more, where it alone would cover too little. They apply it to the variance over the
R K folds, which covers too little where folds have few examples and most are right.

**Scores between 0 and 1**, such as the F1 of an example or the IoU of a mask, vary less than right and wrong answers of
the same mean m, whose variance is m (1 - m). The number of examples is divided by the share of it that they have, which
is estimated with half an example of 0 and half of 1 besides: of scores that are nearly all 1, few examples show no
spread, and Student's interval from their variance alone covers as little as 40 to 65 % with 10 to 20 examples.

**Paired comparison.** The same factor on the variance of the differences of each example, with one further example each
way (Bonett & Price 2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
Data"). Without these two, three discordant examples of 20 could give a verdict.

**Choice.** Nothing is reported on the examples that chose it: `estimate_chosen` scores each fold by the candidate that
`choose_recipe` chooses on the other folds.

**Rates**, by `scripts/bench/crossfit_rates.py`, with 5 folds: the interval covers the accuracy of the model trained on
all labels in 95 to 98 % of simulated studies (over folds: 84 to 97 %, without the factor: 92 to 96 %), and in 95 % on
100 labels of Fashion-MNIST. Of two candidates that are equally good, the first "helped" in 0 to 4 % and "hurt" in 0 to
3 %. From 100 labels on, as many true differences are found as over folds, or more. The score of the winner is too high
by 4 to 8 points with 20 labels, `estimate_chosen` by 1 to 3; with 100 it is less than a point off in simulations, and
1.5 too low on Fashion-MNIST, where 80 labels teach less than 100. The interval of `estimate_chosen` covers the winner
in 93 to 98 %; with one division in place of five in 88 to 96 %, and the choice loses up to half a point more.

**Weights.** Where classes are spread otherwise over the examples to predict than over the labels, each label counts as
its weight says. It takes (sum w)^2 / sum w^2 equal examples to give a mean of the same variance (Kish 1965), and these
are the number of examples then.

**What the interval covers.** The accuracy of the recipe trained on all N labels, on new examples from the same
distribution as the labeled ones. Not: labels that were chosen rather than drawn, other proportions of the classes,
wrong labels, and copies that no group names. Models of a fold learn from fewer labels than all N, so that accuracies
are somewhat too low. Both come from one set of labels: more repeats narrow neither interval much.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri

from sft_lightning.data.set_folds import UNJUDGED as UNJUDGED
from sft_lightning.study.intervals import (
    LEVEL,
    Comparison as Comparison,
    Estimate as Estimate,
    Verdict,
    compare_means,
    estimate_share,
)
from sft_lightning.tasks.intervals import compute_design_effect
from sft_lightning.utils.errors import InputError

MAX_NEEDED_LABELS = 1_000_000
_LEAST_FACTOR = 1.25
_SAME = 1e-9  # scores that differ by rounding are equal

Array = NDArray[Any]


def estimate_accuracy(
    correct: Array, fold: Array, groups: Sequence[str] | None = None, weights: Array | None = None,
    squares: Array | None = None,
) -> Estimate:  # fmt: skip
    """Estimate the accuracy of a recipe trained on all labels, or its mean score.

    Args:
        correct: Whether each prediction was right, 0 or 1, or its score between them, (R, N); values of unjudged
            examples are ignored.
        fold: Fold of each example from `make_folds`, (R, N).
        groups: Name of each example's group, as given to `make_folds`; examples of a group widen the interval as far as
            they are right or wrong together.
        weights: Weight of each example, (N,), 0 or more; None for equal ones.
        squares: Mean square of the scores of each example, (R, N), where `correct` has means; None otherwise.

    Raises:
        InputError: Fewer than two examples, or groups, are judged.
    """
    mean_correct, unit, w = _average(correct, fold, groups, weights)
    mean_square = _average(correct**2 if squares is None else squares, fold, groups, weights)[0]
    mean, share = float((w * mean_correct).sum() / w.sum()), _share_of_spread(mean_correct, mean_square, w)
    size = float(w.sum()) / (overlap_factor(fold) * compute_design_effect(mean_correct, unit, w) * share)
    return estimate_share(mean, size, _degrees_of_freedom(unit, w))


def compare(
    correct_a: Array,
    correct_b: Array,
    fold: Array,
    groups: Sequence[str] | None = None,
    weights: Array | None = None,
) -> Comparison:
    """Compare two candidates on the same folds.

    Args:
        correct_a: Whether each prediction of the first candidate was right, 0 or 1, (R, N).
        correct_b: That of the second candidate, (R, N).
        fold: Fold of each example from `make_folds`, (R, N).
        groups: Name of each example's group, as given to `make_folds`.
        weights: Weight of each example, (N,), 0 or more; None for equal ones.

    Returns:
        First candidate minus second: "helped" if the first is better.

    Raises:
        InputError: Fewer than two examples, or groups, are judged.
    """
    a, unit, w = _average(correct_a, fold, groups, weights)
    return _compare_means(a - _average(correct_b, fold, groups, weights)[0], unit, overlap_factor(fold), w)


def _compare_means(differences: Array, unit: Array, factor: float, w: Array) -> Comparison:
    """Compare by the differences of the examples, (N,), whose groups are numbered in `unit`, (N,).

    Args:
        differences: Difference of each example.
        unit: Number of its group.
        factor: Factor of the variance.
        w: Weight of each example, whose sum is the number of examples that they are worth.
    """
    n = float(w.sum())
    difference = float((w * differences).sum()) / n
    variance = float((w * differences**2).sum()) / n - difference**2
    spread = factor * compute_design_effect(differences, unit, w)
    return compare_means(difference, variance, n, spread, _degrees_of_freedom(unit, w), len(differences))


def compare_on_test(correct_a: ArrayLike, correct_b: ArrayLike) -> Comparison:
    """Compare two trained models on the same examples, which neither they nor their choice have seen.

    The p-value is that of the exact McNemar test, and the interval Agresti & Min's 2005, "Simple Improved Confidence
    Intervals for Comparing Matched Proportions", which adds half an example to each of the four counts. Both are about
    these two models, not about others that the same recipes would give.

    Scores between 0 and 1, such as the F1 of an example, are compared by the interval of `compare` without its factor
    for overlapping training sets.

    Args:
        correct_a: Whether each prediction of the first model was right, 0 or 1, or its score, (N,).
        correct_b: That of the second model, (N,).
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if not np.isin([a, b], (0, 1)).all():
        return _compare_means(a - b, np.arange(len(a)), 1.0, np.ones(len(a)))
    won, lost, n = float((a > b).sum()), float((a < b).sum()), len(a)
    p_value = min(1.0, 2 * float(bdtr(min(won, lost), int(won + lost), 0.5))) if won + lost else 1.0
    center = (won - lost) / (n + 2)
    error = float(np.sqrt((won + lost + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2) ** 2))
    reach = float(ndtri(1 - LEVEL / 2)) * error
    verdict: Verdict = "no evidence yet"
    if p_value < LEVEL:
        verdict = "helped" if won > lost else "hurt"
    return Comparison((won - lost) / n, max(-1.0, center - reach), min(1.0, center + reach), p_value, verdict, n)


def count_needed_labels(comparison: Comparison) -> int | None:
    """Return about how many judged labels in all would settle a comparison if the difference stays.

    The width of the interval falls with the square root of their number.

    Args:
        comparison: Comparison from `compare`.

    Returns:
        Number of labels, above that of the comparison; None if it is settled, if both are equal, or if it would
        take more than a million.
    """
    center, reach = (comparison.low + comparison.high) / 2, (comparison.high - comparison.low) / 2
    if comparison.verdict != "no evidence yet" or abs(center) < _SAME:
        return None
    needed = int(comparison.labels * (reach / center) ** 2) + 1
    return needed if needed <= MAX_NEEDED_LABELS else None


def choose(scores: ArrayLike) -> int:
    """Return the position of the best score, of equal ones the first, so list cheap candidates first.

    The rule of one standard error, which takes the first candidate within the error of the best, loses more: with few
    labels, errors are larger than what separates candidates (`scripts/bench/crossfit_rates.py`).

    Args:
        scores: Score of each candidate, higher is better, (M,); NaN for one that failed, which is never chosen.

    Raises:
        InputError: No candidate has a score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or np.isnan(values).all():
        raise InputError(f"none of {len(values)} candidates has a score: add one that can be trained")
    return int(np.argmax(values >= np.nanmax(values) - _SAME))


def choose_recipe(
    correct: Array,
    fold: Array,
    groups: Sequence[str] | None = None,
    weights: Array | None = None,
    default: int | None = None,
) -> int:
    """Return the position of the best candidate, or of one that is good by experience unless the best is ahead of it.

    Ahead means by more than one standard error of the difference of both, as `compare` has it, but for its two further
    examples. With few labels, the best of many candidates often is by chance alone (`scripts/bench/choice_rules.py`).

    Args:
        correct: Whether each prediction of each candidate was right, 0 or 1, (M, R, N), cheap candidates first.
        fold: Fold of each example from `make_folds`, (R, N).
        groups: Name of each example's group, as given to `make_folds`.
        weights: Weight of each example, (N,), 0 or more; None for equal ones.
        default: Position of the candidate to prefer; None for none.

    Raises:
        InputError: Fewer than two examples, or groups, are judged.
    """
    averaged = [_average(each, fold, groups, weights) for each in correct]
    _, unit, w = averaged[0]
    return _choose(np.stack([mean for mean, *_ in averaged]), unit, w, overlap_factor(fold), default)


def _choose(scores: Array, unit: Array, w: Array, factor: float, default: int | None) -> int:
    """Choose by the scores of the candidates for each example, (M, N), of which `_average` gives unit and w."""
    means = (scores * w).sum(1) / w.sum()
    best = choose(means)
    if default is None or best == default:
        return best
    lead, differences = float(means[best] - means[default]), scores[best] - scores[default]
    variance = float((w * (differences - lead) ** 2).sum() / w.sum())
    error = np.sqrt(variance * factor * compute_design_effect(differences, unit, w) / w.sum())
    return best if lead > max(float(error), _SAME) else default


def estimate_chosen(
    correct: Array,
    fold: Array,
    groups: Sequence[str] | None = None,
    weights: Array | None = None,
    default: int | None = None,
) -> Estimate:
    """Estimate the accuracy of choosing the best candidate and training it on all labels.

    Each fold is scored by the candidate that is best on the examples outside it, so that no example takes part in the
    choice that it is scored by. The accuracy of the winner by `estimate_accuracy` is too high, since it won by luck,
    too. Candidates are not trained again for the choice: their models outside a fold have learned from its labels, so
    that with some 20 labels the estimate is still slightly too high.

    Args:
        correct: Whether each prediction of each candidate was right, 0 or 1, (M, R, N), cheap candidates first.
        fold: Fold of each example from `make_folds`, (R, N).
        groups: Name of each example's group, as given to `make_folds`.
        weights: Weight of each example, (N,), 0 or more; None for equal ones.
        default: Position of the candidate that `choose_recipe` prefers; None for none.

    Raises:
        InputError: Fewer than two examples, or groups, are judged.
    """
    scores = score_choice(correct, fold, groups, weights, default)
    return estimate_accuracy(scores, fold, groups, weights)


def score_choice(
    correct: Array,
    fold: Array,
    groups: Sequence[str] | None = None,
    weights: Array | None = None,
    default: int | None = None,
) -> Array:
    """Return whether the best candidate on the examples outside each fold was right on those inside, (R, N).

    Args:
        correct: Whether each prediction of each candidate was right, 0 or 1, (M, R, N), cheap candidates first.
        fold: Fold of each example from `make_folds`, (R, N).
        groups: Name of each example's group, as given to `make_folds`.
        weights: Weight of each example in the choice, (N,), 0 or more; None for equal ones.
        default: Position of the candidate that `choose_recipe` prefers; None for none.
    """
    if correct.ndim != 3 or correct.shape[1:] != fold.shape:
        raise ValueError(f"correct has the shape {correct.shape}: give (M, R, N), with folds {fold.shape}")
    names = np.arange(fold.shape[1]) if groups is None else np.asarray(groups)
    w = np.ones(fold.shape[1]) if weights is None else weights
    mean_correct, factor = correct.mean(1), overlap_factor(fold)
    chosen = np.zeros(fold.shape)
    for r, row in enumerate(fold):
        for k in range(row.max() + 1):
            others, held_out = (row != k) & (row != UNJUDGED), row == k
            unit = np.unique(names[others], return_inverse=True)[1]
            best = _choose(mean_correct[:, others], unit, _count_equal(w[others]), factor, default)
            chosen[r, held_out] = correct[best, r, held_out]
    return chosen


def _average(
    correct: Array, fold: Array, groups: Sequence[str] | None, weights: Array | None
) -> tuple[Array, Array, Array]:
    """Return the mean over repeats, the number of the group and the weight of each judged example.

    The sum of the weights is the number of equal examples whose mean would have the same variance.
    """
    if correct.ndim != 2 or correct.shape != fold.shape:
        raise ValueError(f"correct has the shape {correct.shape} and folds {fold.shape}: give (R, N) twice")
    judged = fold[0] != UNJUDGED
    if ((fold != UNJUDGED) != judged).any():
        raise ValueError("an example is judged in one repeat and not in another: use the folds of make_folds")
    unit = np.arange(fold.shape[1]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    unit = np.unique(unit[judged], return_inverse=True)[1]
    if unit.max(initial=-1) < 1:
        raise InputError(f"{judged.sum()} labeled example(s) in fewer than 2 groups can be judged: add labels")
    values = correct[:, judged].astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("correct has values other than 0 and 1: give whether predictions were right")
    w = np.ones(len(unit)) if weights is None else np.asarray(weights, dtype=np.float64)[judged]
    if not (np.isfinite(w) & (w >= 0)).all() or not w.any():
        raise ValueError("weights are negative, infinite or all 0: give 0 or more for each example")
    return values.mean(0), unit, _count_equal(w)


def _share_of_spread(means: Array, mean_squares: Array, w: Array) -> float:
    """Return the variance of scores as a share of that of right and wrong answers of their mean, above 0 and at most 1.

    Args:
        means: Mean score of each example over repeats, (N,).
        mean_squares: Mean square of its scores, (N,).
        w: Weight of each example, whose sum is the number of examples that they are worth.
    """
    n = float(w.sum()) + 1  # with half an example of 0 and half of 1
    center = (float((w * means).sum()) + 0.5) / n
    return 1 - float((w * (means - mean_squares)).sum()) / n / (center * (1 - center))


def _count_equal(w: Array) -> Array:
    """Return weights whose sum is the number of equal examples with a mean of the same variance (Kish 1965)."""
    return w * (float(w.sum()) / float((w**2).sum()))


def overlap_factor(fold: Array) -> float:
    """Return what training sets that overlap multiply the variance by, 1 + n_test / n_train, but at least 1.25.

    Args:
        fold: Fold of each example, (R, N); -1 for one that is never held out.
    """
    held_out = float((fold[0] != UNJUDGED).sum()) / float(np.mean([row.max() + 1 for row in fold]))
    return max(_LEAST_FACTOR, 1 + held_out / float(fold.shape[1] - held_out))


def _degrees_of_freedom(unit: Array, w: Array) -> float:
    """Return the number of groups less one, which are fewer as far as weights make the examples worth fewer."""
    return max(1.0, (int(unit.max()) + 1) * float(w.sum()) / len(w) - 1)
