"""Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"."""

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
    """The class that the network finds most likely is taken for the label.

    Lee's loss has no threshold and a slowly growing weight (`lambda_ramp` of the paradigm); later work has a threshold.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        """Sets the threshold.

        Args:
            threshold: Least probability of an accepted pseudo-label.

        Raises:
            InputError: It is no probability.
        """
        super().__init__()
        check_fraction(threshold=threshold)
        self.threshold = threshold

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Cross-entropy with the network's own answer, which gets no gradient."""
        with torch.no_grad():
            confidence, label = at_least_float32(step.student.logits).softmax(1).max(1)
            weight = (confidence >= self.threshold).float()
        return StrategyOutput(masked_cross_entropy(step.student.logits, label, weight), label, weight)
