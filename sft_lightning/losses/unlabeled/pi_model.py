"""Pi-model: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning"."""

from typing import ClassVar

from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput
from sft_lightning.utils.inputs import concatenate_inputs


class PiModel(Strategy):
    """Consistency of the probabilities of two weak views, both with gradient, as in the paper."""

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    student: ClassVar[str | None] = None

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the mean squared difference of the probabilities.

        Both views go through one pass, so that batch normalization uses the same statistics for both.
        """
        both = step.network.outputs(concatenate_inputs([step.unlabeled.weak, step.unlabeled.weak_2])).logits
        one, two = both.softmax(1).chunk(2)
        return StrategyOutput(F.mse_loss(one, two), one.detach().argmax(1))
