"""Entropy minimization: Grandvalet & Bengio 2004, "Semi-supervised Learning by Entropy Minimization"."""

from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput


class EntropyMinimization(Strategy):
    """Mean entropy of the predictions as L_u, which moves decision boundaries away from the examples."""

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return -sum p log p, averaged over the batch."""
        log_p = step.student.logits.log_softmax(1)
        return StrategyOutput(-(log_p.exp() * log_p).sum(1).mean(), log_p.detach().argmax(1))
