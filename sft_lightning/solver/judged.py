"""Recipes that were judged by folds, whatever they learn from, and their results, which later calls read."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.plan import RUNG, Plan, Stage, format_seconds
from sft_lightning.solver.recipes import OutOfTimeError, Recipe, cross_fit
from sft_lightning.solver.units import read_unit, write_unit
from sft_lightning.solver.verdict import format_estimate
from sft_lightning.study.intervals import Comparison, Estimate
from sft_lightning.utils.errors import InputError, describe_failure

_RULES = 4  # of how held-out labels are predicted: another number makes results of earlier versions invalid


@dataclass
class JudgedRecipe:
    """Result of one recipe.

    Attributes:
        recipe: Recipe.
        source: Source as the recipe sees it.
        estimate: Score with its interval.
    """

    recipe: Recipe
    source: LabeledSource
    estimate: Estimate


ResultT = TypeVar("ResultT", bound=JudgedRecipe)


class JudgedRecipes(ABC, Generic[ResultT]):
    """Recipes that were tried, and their results.

    Attributes:
        source: Source of the labels.
        plan: Plan to follow.
        name: Name of the solution.
        folder: Folder of the solution.
        report: Function that gets lines of progress.
        judged: Whether each labeled example is in a fold, bool, (N,).
        results: Results so far.
        caveat: Sentence on labels that count for unlabeled examples; empty where all count the same.
        method: Sentence on how intervals come about; empty where they are those of a mean.
        busyness: Seconds for a second of work, on a machine that others use, too.
        failed: Sentences about recipes that failed or took too long.
    """

    def __init__(
        self, source: LabeledSource, plan: Plan, name: str, folder: Path, report: Callable[[str], None]
    ) -> None:
        """Start without results.

        Args:
            source: Source of the labels.
            plan: Plan to follow.
            name: Name of the solution.
            folder: Folder of the solution.
            report: Function that gets lines of progress.
        """
        self.source, self.plan, self.name, self.folder, self.report = source, plan, name, folder, report
        self.judged = source.folds >= 0
        self.results: list[ResultT] = []
        self.caveat = self.method = ""
        self.busyness = 1.0
        self.failed: list[str] = []

    @property
    def folds(self) -> np.ndarray:
        """Fold of each judged example in each division, (R, J)."""
        folds: np.ndarray = self.source.divisions[:, self.judged]
        return folds

    @property
    def groups(self) -> list[str] | None:
        """Group of each judged example."""
        given = self.source.groups
        return None if given is None else [given[i] for i in np.flatnonzero(self.judged).tolist()]

    @abstractmethod
    def choose(self, among: Sequence[int] | None = None) -> int:
        """Return the position of the best result.

        Args:
            among: Positions to choose from; None for all.
        """

    @abstractmethod
    def estimate_choice(self) -> Estimate:
        """Estimate the score of choosing among all results and training what is chosen on all labels."""

    @abstractmethod
    def compare_choices(self, ours: Sequence[int], theirs: Sequence[int]) -> Comparison:
        """Compare choosing among some results with choosing among others.

        Args:
            ours: Positions of the first ones.
            theirs: Positions of the others.
        """

    def find_default(self, positions: Sequence[int]) -> int | None:
        """Return the place among some results of the one to prefer unless another is ahead; by default None.

        Args:
            positions: Positions of the results.
        """
        return None

    def announce(self, stage: Stage) -> bool:
        """Report what a stage does, or why it is left out, and return whether it runs.

        Args:
            stage: Stage that was decided.
        """
        if stage.dropped:
            self.report(f"Left out: {stage.dropped}.")
        elif stage.what:
            self.report(f"Planned: {stage.what}, {format_seconds(stage.seconds)}.")
        return not stage.dropped

    def report_result(self, result: ResultT) -> None:
        """Report the score of a recipe.

        Args:
            result: Result of the recipe.
        """
        self.report(f"{result.recipe.name}: {format_estimate(result.estimate)}")

    def predict(
        self, recipe: Recipe, source: LabeledSource, digest: str, shape: Sequence[int], seconds: float, **how: Any
    ) -> Tensor | None:
        """Cross-fit a recipe, as far as an earlier call has not done so.

        Args:
            recipe: Recipe.
            source: Source as the recipe sees it.
            digest: SHA-256 of the weights that it starts from; empty without any.
            shape: Shape of the predictions of a division.
            seconds: Time for it.
            how: Further arguments of `cross_fit`.

        Returns:
            Predictions, (R, *shape), or None where the recipe failed or took too long.
        """
        key = repr((_RULES, source.key, recipe.name, recipe.argv, recipe.steps, digest))
        unit = hashlib.sha256(key.encode()).hexdigest()
        path = self.folder / "units" / f"{unit[:32]}.safetensors"
        found, is_complete = read_unit(path, shape)
        if is_complete:
            return found
        try:
            if seconds <= 0:
                raise OutOfTimeError("the time was used up")
            name = f"solve/{self.name}/trainings/{unit[:8]}"
            keep = partial(write_unit, path, recipe.name, False)
            found = cross_fit(recipe, source, name, self.report, found, keep, seconds, **how)
        except (InputError, OutOfTimeError) as error:
            why = str(error) if isinstance(error, OutOfTimeError) else describe_failure(error)
            self.failed.append(f"{recipe.name}: {why}")
            self.report(f"{self.failed[-1]}")
            if not self.results and not recipe.uses_unlabeled:
                raise
            return None
        write_unit(path, recipe.name, True, found)
        return found


def halve(
    plan: Plan,
    trainings: Sequence[Callable[[int], Recipe]],
    steps: int,
    judge: Callable[[int, int], JudgedRecipe | None],
) -> None:
    """Judge trainings by successive halving: all at a third of the steps, then the better half at all of them.

    Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization".

    Args:
        plan: Plan, which keeps why some go no further.
        trainings: Functions from a number of optimizer steps to a recipe.
        steps: Number of steps.
        judge: Function that judges the training of a position at a number of steps; None where it failed.
    """
    kept = [*range(len(trainings))]
    if len(trainings) > 1:
        judged = [(judge(i, steps // RUNG), i) for i in kept]
        done = [(result, i) for result, i in judged if result is not None]
        done.sort(key=lambda pair: -pair[0].estimate.mean)
        most = math.ceil(len(trainings) / 2)
        for _, i in done[most:]:
            name, better = trainings[i](steps).name, done[0][0].recipe.name
            plan.drop(name, f"{name}: {better} is ahead at a third of them")
        kept = [i for _, i in done[:most]]
    for i in kept:
        judge(i, steps)
