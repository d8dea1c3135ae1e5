"""Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"."""

from typing import Any

import torch

from sft_lightning.errors import InputError
from sft_lightning.losses.unlabeled import Network, Outputs, Result, Strategy, masked_cross_entropy


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
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}: give a probability from 0 to 1")
        self.threshold = threshold

    def loss(
        self,
        network: Network,
        unlabeled: Any,
        student: Outputs | None,
        labeled: Any = None,
        known: Outputs | None = None,
    ) -> Result:
        """Cross-entropy with the network's own answer, which gets no gradient."""
        assert student is not None
        with torch.no_grad():
            confidence, label = student.logits.float().softmax(1).max(1)
            weight = (confidence >= self.threshold).float()
        return Result(masked_cross_entropy(student.logits, label, weight), label, weight)
