"""Recipes that are judged by the mean of a score of each labeled example, such as whether it is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sft_lightning.solver.judged import JudgedRecipe, JudgedRecipes
from sft_lightning.study.intervals import Comparison, Estimate
from sft_lightning.study.judge import choose_recipe, compare, estimate_accuracy, score_choice


@dataclass
class ScoredRecipe(JudgedRecipe):
    """Result of a recipe whose score is a mean.

    Attributes:
        scores: Score of each judged example in each division, such as 1 where it is right, (R, J).
    """

    scores: np.ndarray


ScoredT = TypeVar("ScoredT", bound=ScoredRecipe)


class ScoredRecipes(JudgedRecipes[ScoredT]):
    """Recipes that were tried, whose scores are means.

    Attributes:
        weights: What each judged example counts, float64, (J,); None where all count the same.
    """

    def __init__(self, *given: Any) -> None:
        """Start without results.

        Args:
            given: Arguments of `JudgedRecipes`.
        """
        super().__init__(*given)
        self.weights: np.ndarray | None = None

    def choose(self, among: Sequence[int] | None = None) -> int:
        """Return the position of the best result."""
        positions = list(range(len(self.results))) if among is None else list(among)
        scores = self._stack_scores(positions)
        return positions[choose_recipe(scores, *self._how_judged, default=self.find_default(positions))]

    def score_choice(self, among: Sequence[int]) -> np.ndarray:
        """Return the scores of choosing on other folds than those that the choice is scored on, (R, J).

        Args:
            among: Positions to choose from.
        """
        return score_choice(self._stack_scores(among), *self._how_judged, default=self.find_default(among))

    def estimate_choice(self) -> Estimate:
        """Estimate the score of choosing among all results and training what is chosen on all labels."""
        return estimate_accuracy(self.score_choice(range(len(self.results))), *self._how_judged)

    def compare_choices(self, ours: Sequence[int], theirs: Sequence[int]) -> Comparison:
        """Compare choosing among some results with choosing among others."""
        return compare(self.score_choice(ours), self.score_choice(theirs), *self._how_judged)

    def _stack_scores(self, positions: Sequence[int]) -> np.ndarray:
        """Return the scores of some results, (M, R, J)."""
        return np.stack([self.results[i].scores for i in positions])

    @property
    def _how_judged(self) -> tuple[np.ndarray, list[str] | None, np.ndarray | None]:
        """Folds, groups and weights of the judged examples, as `choose_recipe` takes them."""
        return self.folds, self.groups, self.weights

    def estimate(self, scores: np.ndarray) -> tuple[np.ndarray, Estimate]:
        """Return scores in each division, (R, J), and their mean with its interval.

        Predictions of a training, in one division, stand for all of them: the label is held out in each.

        Args:
            scores: Scores of the judged examples in some divisions, (R, J) or (1, J).
        """
        every = np.broadcast_to(scores, self.folds.shape)
        return every, estimate_accuracy(every, *self._how_judged)
