"""Judge scores that are not means over examples, such as an average precision, by drawing the examples again.

Each draw takes as many of the judged examples as there are, with replacement, and measures the score of the stored
predictions (the bootstrap, Efron 1979). Examples of a group are drawn together, and all recipes are measured on the
same draws, so that their differences are paired. The variance over the draws takes the place of that of a mean in the
intervals of `judge`: multiplied by the factor for training sets that overlap, with Student's t, and never taken for
smaller than that of independent examples (Kish 1965), since few draws with equal scores would promise too much.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_lightning.study.intervals import Comparison, Estimate, compare_means, estimate_share

Array = NDArray[np.float64]
_MOST, _LEAST, _EXAMPLES = 500, 100, 50_000  # draws, at most and at least, and examples in all draws together
_SAME = 1e-9  # scores that differ by rounding are equal


class Draws:
    """Draws of judged examples with replacement.

    Attributes:
        weights: How often each example counts, float64, (1 + B, N); all examples once in the first row.
        units: Number of groups, or of examples where each stands alone.
        factor: What the variance over the draws is multiplied by.
    """

    def __init__(self, count: int, groups: Sequence[str] | None, factor: float, seed: int) -> None:
        """Draw.

        Args:
            count: Number of examples.
            groups: Group of each example; None where each stands alone.
            factor: What the variance over the draws is multiplied by, 1 on a test split.
            seed: Seed of the draws.
        """
        unit = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        self.units, self.factor = int(unit.max(initial=-1)) + 1, factor
        number = max(_LEAST, min(_MOST, _EXAMPLES // max(1, count)))
        drawn = np.random.default_rng(seed).multinomial(self.units, np.full(self.units, 1 / self.units), number)
        self.weights: Array = np.concatenate([np.ones((1, count)), drawn[:, unit].astype(np.float64)])

    @property
    def number(self) -> int:
        """Number of draws."""
        return len(self.weights) - 1

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.weights.shape[1])

    @property
    def _degrees(self) -> float:
        return max(1.0, self.units - 1.0)

    def estimate(self, scores: Array) -> Estimate:
        """Return a score between 0 and 1 with its interval.

        Args:
            scores: Score of all examples, and of each draw, (1 + B,).
        """
        mean, variance = float(scores[0]), float(scores[1:].var())
        independent = mean * (1 - mean) / variance if variance > _SAME**2 else self.count
        return estimate_share(mean, min(self.count, max(1.0, independent)) / self.factor, self._degrees)

    def compare(self, ours: Array, theirs: Array) -> Comparison:
        """Compare two scores, the first minus the second.

        Args:
            ours: First score of all examples, and of each draw, (1 + B,).
            theirs: Second score.
        """
        differences, size = ours - theirs, self.count
        variance = size * float(differences[1:].var())
        return compare_means(float(differences[0]), variance, size, self.factor, self._degrees, size)

    def is_ahead(self, ours: Array, theirs: Array) -> bool:
        """Return whether a score is ahead of another by more than a standard error of their difference.

        Args:
            ours: First score of all examples, and of each draw, (1 + B,).
            theirs: Second score.
        """
        differences = ours - theirs
        error = float(np.sqrt(differences[1:].var() * self.factor))
        return bool(differences[0] > max(error, _SAME))
