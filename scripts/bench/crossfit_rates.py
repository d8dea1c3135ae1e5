"""Measure how often the judgments of `sft_lightning/study/judge.py` are right: coverage, false verdicts, bias.

    python scripts/bench/crossfit_rates.py --out scripts/bench/results/crossfit_rates.json

Candidates are cross-fitted on few labels and judged by these alone; the truth is known here.

- `simulated`: two normal classes, and least squares on different features with different penalties, so that candidates
  correlate. The truth of each model is exact. The first two candidates are exchangeable: every verdict on them is
  false. The last two differ: `found` counts the right verdicts.
- `sample`: images of the bundled sample with as many labels of each class, new ones in each repetition, and classifiers
  on 32 whitened components of the pixels. The truth is the accuracy on all other images.

`covered` are shares of 95% intervals that hold the accuracy of the model trained on all labels, `covered_recipe` the
mean accuracy of such models. `helped_wrongly` is how often "helped" was said where the truth is worse, or better by at
most half a point; `helped_rightly` where it is better by at least five points. `bias` is an estimate minus the truth,
for each candidate, for the winner by its own score and for `estimate_chosen`. `lost` is how much worse the choice by a
rule is than the best candidate: the best score, the first within one standard error of it, or the first that is not
significantly worse. `mixed` is the same where the last two candidates were judged in the first division alone, as
`solve` judges trainings. `nadeau_bengio` is their interval over the accuracies of folds, `no_factor` ours without the
factor for overlap.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import publish
from scipy.special import ndtr, stdtrit
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.classifiers import Classifier, KNearestNeighbors, LogisticRegression, NearestClassMean, Ridge
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.data.class_folds import make_folds
from sft_lightning.study.judge import choose, compare, estimate_accuracy, estimate_chosen
from sft_lightning.transfer.vectors import stack_vectors

Array = NDArray[Any]
Rates = dict[str, list[float]]
SHARED = 4  # features of both exchangeable candidates, and of each its own
DISTANCES = {"hard": 0.5, "medium": 1.0, "easy": 1.6}  # of a class mean from the middle, in 8 features
FIRST, SECOND = np.arange(2 * SHARED), np.r_[:SHARED, 2 * SHARED : 3 * SHARED]
SIMULATED: list[tuple[Array, float]] = [  # features and penalty
    (FIRST, 1.0),
    (SECOND, 1.0),
    (FIRST, 100.0),
    (np.arange(3 * SHARED), 3.0),
    (np.arange(2 * SHARED, 3 * SHARED), 1.0),
]
CLASSIFIERS: dict[str, Callable[[], Classifier]] = {
    "nearest class mean": NearestClassMean,
    "5 nearest neighbors": lambda: KNearestNeighbors(5),
    "ridge": Ridge,
    "logistic regression, weak penalty": lambda: LogisticRegression(1.0),
    "logistic regression, strong penalty": lambda: LogisticRegression(0.1),
}


def main() -> None:
    """Measure both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=250, help="for each number of labels and distance")
    parser.add_argument("--repetitions", type=int, default=200, help="on images of the sample")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 100, 500], help="labels in simulations")
    parser.add_argument("--labels", type=int, default=100, help="labels of the sample")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="in simulations")
    parser.add_argument("--sample_repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    simulated = {
        f"{size} labels, {name}": simulate(size, distance, args.simulations, args.folds, args.repeats)
        for size in args.sizes
        for name, distance in DISTANCES.items()
    }
    sample = measure_sample(args.labels, args.repetitions, args.folds, args.sample_repeats)
    publish(args, {"simulated": simulated, "sample": sample})


def simulate(size: int, distance: float, simulations: int, folds: int, repeats: int) -> dict[str, Any]:
    """Return rates over simulated data sets of two classes.

    Args:
        size: Number of labels.
        distance: Distance of a class mean from the middle, in 8 features.
        simulations: Number of data sets.
        folds: Number of folds.
        repeats: Number of divisions into folds.
    """
    mean = np.full(3 * SHARED, distance / math.sqrt(2 * SHARED))
    y = np.arange(size) % 2
    runs = []
    for seed in range(simulations):
        x = np.random.default_rng(seed).normal(size=(size, len(mean))) + np.outer(2 * y - 1, mean)
        fold = make_folds(y, folds=folds, repeats=repeats, seed=seed)
        learned = np.concatenate([fold[r] != np.arange(fold[r].max() + 1)[:, None] for r in range(repeats)])
        learned = np.concatenate([learned, np.ones((1, size), dtype=bool)]).astype(np.float64)
        correct, truth = np.empty((len(SIMULATED), repeats, size)), np.empty(len(SIMULATED))
        for m, (columns, penalty) in enumerate(SIMULATED):
            weight, bias = fit_least_squares(x[:, columns], 2.0 * y - 1, learned, penalty)
            right = ((x[:, columns] @ weight[:-1].T + bias[:-1]).T > 0) == (y == 1)
            correct[m] = np.take_along_axis(right.reshape(repeats, -1, size), fold[:, None], 1)[:, 0]
            length, center = np.linalg.norm(weight[-1]), weight[-1] @ mean[columns]
            truth[m] = (ndtr((center + bias[-1]) / length) + ndtr((center - bias[-1]) / length)) / 2
        runs.append((correct, fold, truth))
    expected = np.mean([truth for *_, truth in runs], axis=0)
    rates: Rates = defaultdict(list)
    for correct, fold, truth in runs:
        judge_run(correct, fold, truth, rates)
        for m, candidate in enumerate(correct):
            estimate = estimate_accuracy(candidate, fold)
            rates["covered_recipe"].append(estimate.low <= expected[m] <= estimate.high)
        verdict = compare(correct[0], correct[1], fold).verdict
        rates["false_helped"].append(verdict == "helped")
        rates["false_hurt"].append(verdict == "hurt")
        rates["found"].append(compare(correct[3], correct[4], fold).verdict == "helped")
        low, high = nadeau_bengio(correct[0] - correct[1], fold)
        rates["false_nadeau_bengio"].append(low > 0 or high < 0)
        rates["found_nadeau_bengio"].append(nadeau_bengio(correct[3] - correct[4], fold)[0] > 0)
    return {"accuracies": round_all(expected), **average(rates)}


def fit_least_squares(x: Array, target: Array, learned: Array, penalty: float) -> tuple[Array, Array]:
    """Return the weights (T, F) and biases (T,) of ridge regressions that learn from different examples.

    Args:
        x: Features, (N, F).
        target: Targets, (N,).
        learned: Weight of each example in each regression, 0 or 1, (T, N).
        penalty: Penalty on the squared weights.
    """
    count = learned.sum(1)
    mean, mean_target = learned @ x / count[:, None], learned @ target / count
    products = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    gram = (learned @ products).reshape(len(learned), x.shape[1], -1)
    gram = gram - count[:, None, None] * mean[:, :, None] * mean[:, None] + penalty * np.eye(x.shape[1])
    moment = learned @ (x * target[:, None]) - (count * mean_target)[:, None] * mean
    weight = np.linalg.solve(gram, moment[..., None])[..., 0]
    return weight, mean_target - (weight * mean).sum(1)


def measure_sample(labels: int, repetitions: int, folds: int, repeats: int) -> dict[str, Any]:
    """Return rates over random labels of the bundled sample.

    Args:
        labels: Number of labels.
        repetitions: Number of sets of labels.
        folds: Number of folds.
        repeats: Number of divisions into folds.
    """
    data = ImageDataModule("sample", num_labels=None, val_size=0)
    data.setup("fit")
    parts = [stack_vectors(data.batches_of(name, torch.device("cpu")), data) for name in ("labeled", "test")]
    x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    x = WhitenedPCA(32).fit([x]).transform(x)
    rates: Rates = defaultdict(list)
    truths = []
    for seed in range(repetitions):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        each = [order[y[order] == c][: labels // data.num_classes] for c in range(data.num_classes)]
        chosen = torch.cat(each)
        others = torch.ones(len(y), dtype=torch.bool).index_fill(0, chosen, False)
        fold = make_folds(y[chosen].numpy(), folds=folds, repeats=repeats, seed=seed)
        correct = np.stack([cross_fit(make, x[chosen], y[chosen], fold) for make in CLASSIFIERS.values()])
        truth = np.array(
            [score(make().fit(x[chosen], y[chosen]), x[others], y[others]) for make in CLASSIFIERS.values()]
        )
        judge_run(correct, fold, truth, rates)
        truths.append(truth)
    accuracies = dict(zip(CLASSIFIERS, round_all(np.mean(truths, axis=0)), strict=True))
    return {"images": len(y), "accuracies": accuracies, **average(rates)}


def cross_fit(make: Callable[[], Classifier], x: Tensor, y: Tensor, fold: Array) -> Array:
    """Return whether a classifier predicts each example right when it has not seen it, (R, N)."""
    correct = np.zeros(fold.shape)
    for r, row in enumerate(fold):
        for k in range(row.max() + 1):
            held_out = torch.from_numpy(row == k)
            model = make().fit(x[~held_out], y[~held_out])
            correct[r, row == k] = (model.predict(x[held_out]) == y[held_out]).numpy()
    return correct


def score(model: Classifier, x: Tensor, y: Tensor) -> float:
    """Return the accuracy of a classifier."""
    return float((model.predict(x) == y).double().mean())


def judge_run(correct: Array, fold: Array, truth: Array, rates: Rates) -> None:
    """Add what is right and wrong about the judgments of a set of labels to the rates.

    Args:
        correct: Whether each prediction was right, (M, R, N).
        fold: Fold of each example, (R, N).
        truth: Accuracy of each candidate trained on all labels, (M,).
        rates: Values by name.
    """
    for candidate, true in zip(correct, truth, strict=True):
        estimate = estimate_accuracy(candidate, fold)
        rates["covered"].append(estimate.low <= true <= estimate.high)
        rates["width"].append(estimate.high - estimate.low)
        rates["bias"].append(estimate.mean - true)
        low, high = nadeau_bengio(candidate, fold)
        rates["covered_nadeau_bengio"].append(low <= true <= high)
        low, high = ignore_overlap(candidate)
        rates["covered_no_factor"].append(low <= true <= high)
    for a in range(len(truth)):
        for b in range(len(truth)):
            if a != b and (truth[a] <= truth[b] + 0.005 or truth[a] >= truth[b] + 0.05):
                helped = compare(correct[a], correct[b], fold).verdict == "helped"
                rates["helped_rightly" if truth[a] >= truth[b] + 0.05 else "helped_wrongly"].append(helped)
    scores = correct.mean((1, 2))
    winner, chosen = choose(scores), estimate_chosen(correct, fold)
    rates["covered_chosen"].append(chosen.low <= truth[winner] <= chosen.high)
    rates["bias_chosen"].append(chosen.mean - truth[winner])
    rates["bias_winner"].append(float(scores[winner]) - truth[winner])
    mixed = correct.copy()
    mixed[-2:] = mixed[-2:, :1]
    winner_of_mixed, estimate = choose(mixed.mean((1, 2))), estimate_chosen(mixed, fold)
    rates["covered_chosen_mixed"].append(estimate.low <= truth[winner_of_mixed] <= estimate.high)
    rates["lost_by_best_mixed"].append(truth.max() - truth[winner_of_mixed])
    error = float(correct[winner].mean(0).std(ddof=1)) / math.sqrt(correct.shape[2])
    by_error = int(np.argmax(scores >= scores[winner] - error))
    verdicts = [m == winner or compare(c, correct[winner], fold).verdict != "hurt" for m, c in enumerate(correct)]
    rates["lost_by_best"].append(truth.max() - truth[winner])
    rates["lost_by_one_standard_error"].append(truth.max() - truth[by_error])
    rates["lost_by_verdict"].append(truth.max() - truth[verdicts.index(True)])


def nadeau_bengio(values: Array, fold: Array) -> tuple[float, float]:
    """Return the interval of Nadeau & Bengio 2003 over the means of folds.

    Args:
        values: Values of the examples, (R, N).
        fold: Fold of each example, (R, N).
    """
    means = np.array([values[r, row == k].mean() for r, row in enumerate(fold) for k in range(row.max() + 1)])
    folds = len(means) / len(fold)
    error = math.sqrt(means.var(ddof=1) * (1 / len(means) + 1 / (folds - 1)))
    reach = float(stdtrit(len(means) - 1, 0.975)) * error
    return float(means.mean()) - reach, float(means.mean()) + reach


def ignore_overlap(correct: Array) -> tuple[float, float]:
    """Return Wilson's interval with Student's t, as if predictions were independent.

    Args:
        correct: Whether each prediction was right, (R, N).
    """
    n, mean = correct.shape[1], float(correct.mean())
    t = float(stdtrit(n - 1, 0.975))
    center = (mean + t**2 / (2 * n)) / (1 + t**2 / n)
    reach = t / (1 + t**2 / n) * math.sqrt(mean * (1 - mean) / n + t**2 / (4 * n**2))
    return center - reach, center + reach


def average(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each rate, by name."""
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(rates.items())}


def round_all(values: Iterable[float]) -> list[float]:
    """Return values with three digits after the point."""
    return [round(float(value), 3) for value in values]


if __name__ == "__main__":
    main()
