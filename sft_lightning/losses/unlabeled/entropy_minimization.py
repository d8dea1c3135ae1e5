"""Entropy minimization: Grandvalet & Bengio 2004, "Semi-supervised Learning by Entropy Minimization"."""

from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput


class EntropyMinimization(Strategy):
    """L_u is the mean entropy of the predictions: decision boundaries move away from the examples."""

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """-sum p log p, mean over the batch."""
        logs = step.student.logits.log_softmax(1)
        return StrategyOutput(-(logs.exp() * logs).sum(1).mean(), logs.detach().argmax(1))
