"""Entropy minimization: Grandvalet & Bengio 2004, "Semi-supervised Learning by Entropy Minimization"."""

from typing import Any

from sft_lightning.losses.unlabeled import Network, Outputs, Result, Strategy


class EntropyMinimization(Strategy):
    """L_u is the mean entropy of the predictions: decision boundaries move away from the examples."""

    def loss(
        self,
        network: Network,
        unlabeled: Any,
        student: Outputs | None,
        labeled: Any = None,
        known: Outputs | None = None,
    ) -> Result:
        """-sum p log p, mean over the batch."""
        assert student is not None
        logs = student.logits.log_softmax(1)
        return Result(-(logs.exp() * logs).sum(1).mean(), logs.detach().argmax(1))
