"""Compare the methods of a study on the held-out labels of its folds, all of them together.

An example that more than one seed draws counts once, with the mean over the seeds.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_lightning.study.folds import Draw, Draws
from sft_lightning.study.judge import UNJUDGED, Array, Estimate, compare, count_needed_labels, estimate_accuracy
from sft_lightning.study.plan import StudyRun
from sft_lightning.study.statistics import Comparison, apply_holm

Row = dict[str, Any]


@dataclass(frozen=True)
class FoldResults:
    """Predictions of held-out labels.

    Attributes:
        draws: Labels of each budget and seed with their folds.
        correct: Whether each held-out example is classified correctly, 1 or 0, or its F1 where it has several classes,
            by its name, by method, budget and seed; only where all folds of the seed are trained.
        incomplete: Method, budget and seed of the others.
    """

    draws: Draws
    correct: Mapping[tuple[str, int, int], Mapping[str, float]]
    incomplete: Sequence[tuple[str, int, int]] = ()

    def estimate_all(self) -> dict[tuple[str, int], Estimate]:
        """Return the accuracy of each method by method and budget."""
        estimates = {}
        for method, budget in dict.fromkeys((method, budget) for method, budget, _ in self.correct):
            seeds = self._list_seeds(method, budget)
            fold, groups = self._pool_draws(budget, seeds)
            means, squares = (self._average(method, budget, seeds, power) for power in (1, 2))
            estimates[method, budget] = estimate_accuracy(means, fold, groups, squares=squares)
        return estimates

    def compare_with(self, baseline: str) -> list[Comparison]:
        """Compare each method with the baseline on the seeds that both have, corrected for the number of methods.

        Args:
            baseline: Name of the method that learns from the labels alone.
        """
        comparisons = []
        budgets = sorted({budget for _, budget, _ in self.correct})
        methods = [method for method in dict.fromkeys(method for method, _, _ in self.correct) if method != baseline]
        for budget, method in itertools.product(budgets, methods):
            other = self._list_seeds(baseline, budget)
            if not (seeds := [seed for seed in self._list_seeds(method, budget) if seed in other]):
                continue
            fold, groups = self._pool_draws(budget, seeds)
            a, b = (self._average(name, budget, seeds) for name in (method, baseline))
            judged = compare(a, b, fold, groups)
            comparisons.append(
                Comparison(
                    method,
                    budget,
                    len(seeds),
                    judged.difference,
                    None,
                    judged.low,
                    judged.high,
                    judged.p_value,
                    judged.verdict,
                    None,
                    labels=judged.labels,
                    needed_labels=count_needed_labels(judged),
                )
            )
        return apply_holm(comparisons)

    def describe_limits(self) -> list[str]:
        """Return sentences about seeds with missing predictions, and about the classes that no example judges."""
        missing = [
            f"{method}, {budget} labels, seed {seed}: held-out labels lack a prediction; this seed is not compared."
            for method, budget, seed in self.incomplete
        ]
        names = dict.fromkeys(name for draw in self.draws.values() for name in draw.unjudged)
        if not names:
            return missing
        single = (
            f"No label of {', '.join(names)} is held out: a class with a single one is learned from but not judged."
        )
        return [*missing, single]

    def _list_seeds(self, method: str, budget: int) -> list[int]:
        return [seed for name, number, seed in self.correct if (name, number) == (method, budget)]

    def _list_ids(self, budget: int, seeds: Sequence[int]) -> list[str]:
        return sorted({name for seed in seeds for name in self.draws[budget, seed].ids})

    def _pool_draws(self, budget: int, seeds: Sequence[int]) -> tuple[Array, list[str] | None]:
        """Return the fold of each example of any draw, (1, N), that of the first draw that holds it out, and groups."""
        fold: dict[str, int] = {}
        groups: dict[str, str] = {}
        for draw in (self.draws[budget, seed] for seed in seeds):
            for name, number in zip(draw.ids, draw.folds.tolist(), strict=True):
                if fold.get(name, UNJUDGED) == UNJUDGED:
                    fold[name] = number
            groups.update(zip(draw.ids, draw.groups or (), strict=False))
        ids = self._list_ids(budget, seeds)
        return np.array([[fold[name] for name in ids]]), [groups[name] for name in ids] if groups else None

    def _average(self, method: str, budget: int, seeds: Sequence[int], power: int = 1) -> Array:
        """Return the share of the seeds that have each example right, (1, N), 0 where it is not held out.

        Args:
            method: Name of the method.
            budget: Number of labels.
            seeds: Seeds to average over.
            power: Power of the scores, 2 for the mean of their squares.
        """
        values: dict[str, list[float]] = {}
        for seed in seeds:
            for name, value in self.correct[method, budget, seed].items():
                values.setdefault(name, []).append(value**power)
        return np.array([[float(np.mean(values.get(name, 0))) for name in self._list_ids(budget, seeds)]])


def collect_folds(finals: Iterable[StudyRun], results: Mapping[str, Mapping[str, Any]], draws: Draws) -> FoldResults:
    """Collect the predictions of all folds.

    Args:
        finals: Last run of each method, budget, seed and fold.
        results: Results of the study by key.
        draws: Labels of each budget and seed with their folds.
    """
    correct: dict[tuple[str, int, int], dict[str, float]] = {}
    for run in finals:
        correct.setdefault((run.method, run.budget, run.seed), {}).update(results.get(run.key, {}).get("correct", {}))
    complete = {at: found for at, found in correct.items() if _count_judged(draws[at[1:]]) == len(found)}
    return FoldResults(draws, complete, [at for at in correct if at not in complete])


def _count_judged(draw: Draw) -> int:
    return int((draw.folds != UNJUDGED).sum())


def pool_folds(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each method, budget and seed, with the accuracy over all held-out labels of its folds.

    Args:
        rows: Rows of the folds.
    """
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["budget"], row["seed"]), []).append(row)
    folds = len({row["fold"] for row in rows})
    return [_pool(group, folds) for group in groups.values()]


def _pool(rows: Sequence[Row], folds: int) -> Row:
    failed = next((row["failed"] for row in rows if row["failed"]), "")
    pooled = {**rows[0], "fold": "", "run": "", "test_set": "", "test_best": "", "val_best": "", "failed": failed}
    if failed or len(rows) < folds or any(row["test_last"] == "" for row in rows):
        return {**pooled, "test_last": "", "failed": failed or "a fold was not tested"}
    tested = sum(row["tested"] for row in rows)
    seconds = sum(row["seconds"] for row in rows) if rows[0]["seconds"] != "" else ""
    accuracy = sum(row["test_last"] * row["tested"] for row in rows) / tested
    return {**pooled, "test_last": accuracy, "tested": tested, "seconds": seconds}
