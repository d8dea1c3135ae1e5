"""FixMatch: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"."""

from torch import Tensor

from sft_lightning.losses.unlabeled.base import Consistency, StrategyInputs
from sft_lightning.utils.errors import check_fraction


class FixMatch(Consistency):
    """The class of a confident weak view is the label of the strong view."""

    def __init__(self, threshold: float = 0.95) -> None:
        """Sets the threshold.

        Args:
            threshold: tau, the least probability of an accepted pseudo-label.

        Raises:
            InputError: It is no probability.
        """
        super().__init__()
        check_fraction(threshold=threshold)
        self.threshold = threshold

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """The most likely class, where its probability reaches tau."""
        confidence, label = logits.softmax(1).max(1)
        return label, (confidence >= self.threshold).float()
