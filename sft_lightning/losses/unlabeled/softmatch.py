"""SoftMatch: Chen et al. 2023, "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning"."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import (
    Consistency,
    MomentumWarmup,
    StrategyContext,
    StrategyInputs,
    align_distribution,
    ema_update_,
)
from sft_lightning.utils.distributed import mean_over_ranks, sum_over_ranks
from sft_lightning.utils.errors import check_decay, check_positive


class SoftMatch(Consistency):
    """Consistency with a soft threshold: weights fall off as a Gaussian below the mean confidence (eq. 7 and 8).

    Uniform alignment (eq. 10) affects only the weight; the pseudo-label is the class of the unaligned prediction.

    Reference setting: momentum .999, weights fall off with half the standard deviation (`width: 2`).
    """

    mean: Tensor
    variance: Tensor
    prediction_mean: Tensor

    def __init__(
        self, momentum: float = 0.999, width: float = 2.0, uniform_alignment: bool = True, **consistency: Any
    ) -> None:
        """Check and store the settings.

        Args:
            momentum: Momentum of the running mean and variance.
            width: Divisor of the standard deviation of the Gaussian.
            uniform_alignment: Whether to divide predictions by their running mean before computing weights.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(**consistency)
        check_decay(momentum=momentum)
        check_positive(width=width)
        self.momentum, self.width, self.uniform_alignment = momentum, width, uniform_alignment

    def build(self, context: StrategyContext) -> None:
        """Register the running statistics of the confidence: mean 1 / C and variance 1 until the first update.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        self.register_buffer("mean", torch.tensor(1 / context.num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("prediction_mean", torch.full((context.num_classes,), 1 / context.num_classes))
        self.warmup = MomentumWarmup(self.unbiased_means)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the most likely class and its weight."""
        probabilities = logits.softmax(1)
        label = probabilities.argmax(1)
        momentum = self.warmup.next_momentum(self.momentum)
        if self.uniform_alignment:
            ema_update_(self.prediction_mean, mean_over_ranks(probabilities), momentum)
            uniform = torch.full_like(self.prediction_mean, 1 / len(self.prediction_mean))
            probabilities = align_distribution(probabilities, uniform, self.prediction_mean)
        confidence = probabilities.amax(1)
        mean = mean_over_ranks(confidence)
        variance = mean_over_ranks((confidence - mean).square())  # E[x^2] - E[x]^2 could round below 0
        count = sum_over_ranks(confidence.new_full((), len(confidence)))
        ema_update_(self.mean, mean, momentum)
        ema_update_(self.variance, variance * count / (count - 1).clamp_min(1), momentum)
        below = (confidence - self.mean).clamp(max=0)
        weight = torch.exp(-below.square() / (2 * self.variance.clamp_min(1e-12) / self.width**2))
        return label, weight

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Return mean and standard deviation of the confidence."""
        return {"confidence_mean": self.mean, "confidence_deviation": self.variance.sqrt()}
