"""Pi-model: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning"."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput


class PiModel(Strategy):
    """Two views of an example shall lead to the same probabilities; both get gradient, as in the paper."""

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    student: ClassVar[str | None] = None

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Mean squared difference of the probabilities; one pass, so that batch normalization treats both alike."""
        both = step.network.outputs(torch.cat([step.unlabeled.weak, step.unlabeled.weak_2])).logits
        one, two = both.softmax(1).chunk(2)
        return StrategyOutput(F.mse_loss(one, two), one.detach().argmax(1))
