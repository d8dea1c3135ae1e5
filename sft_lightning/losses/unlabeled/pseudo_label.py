"""Pseudo-Label: Lee 2013, "The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"."""

import torch

from sft_lightning.losses.unlabeled.base import (
    Strategy,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    masked_cross_entropy,
)
from sft_lightning.utils.errors import check_fraction


class PseudoLabel(Strategy):
    """Cross-entropy with the network's most likely class (eq. 15).

    Reference setting: no threshold, which later work added, and a weight that grows slowly (`lambda_ramp` of the
    paradigm).
    """

    def __init__(self, threshold: float = 0.0) -> None:
        """Check and store the threshold.

        Args:
            threshold: Minimum probability of an accepted pseudo-label.

        Raises:
            InputError: The threshold is outside [0, 1].
        """
        super().__init__()
        check_fraction(threshold=threshold)
        self.threshold = threshold

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the cross-entropy with the pseudo-label, which gets no gradient."""
        with torch.no_grad():
            confidence, label = at_least_float32(step.student.logits).softmax(1).max(1)
            weight = (confidence >= self.threshold).float()
        return StrategyOutput(masked_cross_entropy(step.student.logits, label, weight), label, weight)
