"""DebiasMatch: Wang et al. 2022, "Debiased Learning from Naturally Imbalanced Pseudo-Labels"."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import MomentumWarmup, StrategyContext, StrategyInputs, ema_update_
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.distributed import mean_over_ranks
from sft_lightning.utils.errors import check_decay, check_min


class DebiasMatch(FixMatch):
    """FixMatch with logits that are debiased by the running mean of the predictions.

    Pseudo-labels come from z - lambda log p (eq. 3), and the strong view's logits get the margin lambda log p (eq. 5),
    where p is the running mean of the predictions: classes that are predicted too often win less.

    Reference setting: tau .95, lambda .5, momentum .999.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    prediction_mean: Tensor

    def __init__(
        self, threshold: float = 0.95, debias: float = 0.5, momentum: float = 0.999, **consistency: Any
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: Minimum probability of an accepted pseudo-label.
            debias: lambda, strength of the correction; 0 is FixMatch.
            momentum: Momentum of the running mean p.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(threshold, **consistency)
        check_min(0, debias=debias)
        check_decay(momentum=momentum)
        self.debias, self.momentum = debias, momentum

    def build(self, context: StrategyContext) -> None:
        """Register the running mean p, uniform until the first update.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        self.register_buffer("prediction_mean", torch.full((context.num_classes,), 1 / context.num_classes))
        self.warmup = MomentumWarmup(self.unbiased_means)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the targets of FixMatch for corrected logits, then update p with the uncorrected predictions."""
        self._correction = self.debias * self.prediction_mean.clamp_min(1e-12).log()
        label, weight = super().targets(logits - self._correction, step)
        momentum = self.warmup.next_momentum(self.momentum)
        ema_update_(self.prediction_mean, mean_over_ranks(logits.softmax(1)), momentum)
        return label, weight

    def adjusted(self, logits: Tensor) -> Tensor:
        """Return the logits of the strong view with the margin."""
        return logits + self._correction
