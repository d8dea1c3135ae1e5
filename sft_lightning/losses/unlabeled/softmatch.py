"""SoftMatch: Chen et al. 2023, "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning"."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import (
    Consistency,
    StrategyContext,
    StrategyInputs,
    align_distribution,
    ema_update_,
)
from sft_lightning.utils.distributed import mean_over_ranks, sum_over_ranks
from sft_lightning.utils.errors import check_decay, check_positive


class SoftMatch(Consistency):
    """No threshold: a pseudo-label's weight falls as a Gaussian below the mean confidence (eq. 7, 8).

    Uniform alignment (eq. 10) is applied to the weight only; the label is that of the unaligned prediction.
    """

    mean: Tensor
    variance: Tensor
    prediction_mean: Tensor

    def __init__(self, momentum: float = 0.999, width: float = 2.0, uniform_alignment: bool = True) -> None:
        """Sets the Gaussian.

        Args:
            momentum: Of the running mean and variance.
            width: How many standard deviations the Gaussian's own are.
            uniform_alignment: Divide by the running mean of the predictions before the weight is taken.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__()
        check_decay(momentum=momentum)
        check_positive(width=width)
        self.momentum, self.width, self.uniform_alignment = momentum, width, uniform_alignment

    def build(self, about: StrategyContext) -> None:
        """Running mean 1 / C and variance 1 of the confidence, as the paper starts.

        Args:
            about: Sizes.
        """
        self.register_buffer("mean", torch.tensor(1 / about.num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("prediction_mean", torch.full((about.num_classes,), 1 / about.num_classes))

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """The most likely class, and its weight."""
        probabilities = logits.softmax(1)
        label = probabilities.argmax(1)
        if self.uniform_alignment:
            ema_update_(self.prediction_mean, mean_over_ranks(probabilities), self.momentum)
            uniform = torch.full_like(self.prediction_mean, 1 / len(self.prediction_mean))
            probabilities = align_distribution(probabilities, uniform, self.prediction_mean)
        confidence = probabilities.amax(1)
        mean = mean_over_ranks(confidence)
        variance = mean_over_ranks((confidence - mean).square())  # the difference of two means would round below 0
        count = sum_over_ranks(confidence.new_full((), len(confidence)))
        ema_update_(self.mean, mean, self.momentum)
        ema_update_(self.variance, variance * count / (count - 1).clamp_min(1), self.momentum)
        below = (confidence - self.mean).clamp(max=0)
        weight = torch.exp(-below.square() / (2 * self.variance.clamp_min(1e-12) / self.width**2))
        return label, weight

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Mean and deviation of the confidence."""
        return {"confidence_mean": self.mean, "confidence_deviation": self.variance.sqrt()}
