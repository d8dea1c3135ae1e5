"""Pi-model: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning"."""

from typing import ClassVar

from torch.nn import functional as F

from sft_lightning.losses.unlabeled import Result, Step, Strategy


class PiModel(Strategy):
    """Two views of an example shall lead to the same probabilities; both get gradient, as in the paper."""

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")

    def loss(self, step: Step) -> Result:
        """Mean squared difference of the probabilities."""
        one, two = step.student.logits.softmax(1), step.network.outputs(step.unlabeled.weak_2).logits.softmax(1)
        return Result(F.mse_loss(one, two), one.detach().argmax(1))
