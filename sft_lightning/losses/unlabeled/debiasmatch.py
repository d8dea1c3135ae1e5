"""DebiasMatch: Wang et al. 2022, "Debiased Learning from Naturally Imbalanced Pseudo-Labels"."""

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import StrategyContext, StrategyInputs, ema_update_
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.distributed import mean_over_ranks
from sft_lightning.utils.errors import check_decay, check_min


class DebiasMatch(FixMatch):
    """FixMatch with logits corrected by the running mean of the predictions, so that frequent answers win less."""

    prediction_mean: Tensor

    def __init__(self, threshold: float = 0.95, debias: float = 0.5, momentum: float = 0.999) -> None:
        """Sets the correction.

        Args:
            threshold: Least probability of an accepted pseudo-label.
            debias: lambda, how much of log p is subtracted from the weak view's logits (eq. 3) and added to the strong
                view's as a margin (eq. 5).
            momentum: Of the running mean p.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__(threshold)
        check_min(0, debias=debias)
        check_decay(momentum=momentum)
        self.debias, self.momentum = debias, momentum

    def build(self, about: StrategyContext) -> None:
        """A running mean, uniform at first.

        Args:
            about: Sizes.
        """
        self.register_buffer("prediction_mean", torch.full((about.num_classes,), 1 / about.num_classes))

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """As FixMatch, from corrected logits; then the mean of the uncorrected predictions moves on."""
        self._correction = self.debias * self.prediction_mean.clamp_min(1e-12).log()
        label, weight = super().targets(logits - self._correction, step)
        ema_update_(self.prediction_mean, mean_over_ranks(logits.softmax(1)), self.momentum)
        return label, weight

    def adjusted(self, logits: Tensor) -> Tensor:
        """Adds the margin."""
        return logits + self._correction
