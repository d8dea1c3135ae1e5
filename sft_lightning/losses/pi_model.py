"""Pi-model: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning"."""

from typing import Any, ClassVar

from torch.nn import functional as F

from sft_lightning.losses.unlabeled import Network, Outputs, Result, Strategy


class PiModel(Strategy):
    """Two views of an example shall lead to the same probabilities; both get gradient, as in the paper."""

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")

    def loss(
        self,
        network: Network,
        unlabeled: Any,
        student: Outputs | None,
        labeled: Any = None,
        known: Outputs | None = None,
    ) -> Result:
        """Mean squared difference of the probabilities."""
        assert student is not None
        one, two = student.logits.softmax(1), network.outputs(unlabeled.weak_2).logits.softmax(1)
        return Result(F.mse_loss(one, two), one.detach().argmax(1))
