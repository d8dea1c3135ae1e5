"""FixMatch: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"."""

from typing import Any

from torch import Tensor

from sft_lightning.errors import InputError
from sft_lightning.losses.unlabeled import Consistency


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
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}: give a probability from 0 to 1")
        self.threshold = threshold

    def targets(self, logits: Tensor, unlabeled: Any, known: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The most likely class, where its probability reaches tau."""
        confidence, label = logits.softmax(1).max(1)
        return label, (confidence >= self.threshold).float()
