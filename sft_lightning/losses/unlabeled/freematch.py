"""FreeMatch: Wang et al. 2023, "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning"."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Consistency,
    MomentumWarmup,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    ema_update_,
)
from sft_lightning.utils.distributed import mean_over_ranks, sum_over_ranks
from sft_lightning.utils.errors import check_decay, check_min


class FreeMatch(Consistency):
    """Consistency with self-adaptive thresholds and a fairness term.

    The global threshold is a running mean of the confidence (eq. 5), scaled for each class by the running mean of its
    prediction (eq. 6 to 8). The fairness term keeps the predictions on accepted examples diverse (eq. 10 to 12).
    """

    mean_confidence: Tensor
    mean_prediction: Tensor
    label_histogram: Tensor

    def __init__(self, momentum: float = 0.999, fairness: float = 0.001, **consistency: Any) -> None:
        """Check and store the settings.

        Args:
            momentum: Momentum of the running means.
            fairness: w_f, weight of the fairness term.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(**consistency)
        check_decay(momentum=momentum)
        check_min(0, fairness=fairness)
        self.momentum, self.fairness = momentum, fairness

    def build(self, context: StrategyContext) -> None:
        """Register the running means, those of a uniform prediction until the first update.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        uniform = torch.full((context.num_classes,), 1 / context.num_classes)
        self.register_buffer("mean_confidence", torch.tensor(1 / context.num_classes))
        self.register_buffer("mean_prediction", uniform.clone())
        self.register_buffer("label_histogram", uniform.clone())
        self.warmup = MomentumWarmup(self.unbiased_means)

    @property
    def thresholds(self) -> Tensor:
        """Thresholds tau(c) of the classes, (C,)."""
        return self.mean_prediction / self.mean_prediction.max() * self.mean_confidence

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the most likely class, accepted where its probability reaches the threshold of the class."""
        probabilities = logits.softmax(1)
        confidence, label = probabilities.max(1)
        momentum = self.warmup.next_momentum(self.momentum)
        ema_update_(self.mean_confidence, mean_over_ranks(confidence), momentum)
        ema_update_(self.mean_prediction, mean_over_ranks(probabilities), momentum)
        ema_update_(self.label_histogram, mean_over_ranks(F.one_hot(label, logits.shape[1]).to(logits)), momentum)
        return label, (confidence >= self.thresholds[label]).float()

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the consistency loss plus w_f times the fairness term."""
        output = super().loss(step)
        assert output.weight is not None
        if not self.fairness:
            return output
        return output._replace(loss=output.loss + self.fairness * self._fairness(step.student.logits, output.weight))

    def _fairness(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Compute eq. 12: the sum over classes of running p / h times log of the batch's p / h, both normalized."""
        probabilities, chosen = logits.softmax(1), (weight > 0).to(logits)
        predictions = F.one_hot(probabilities.argmax(1), logits.shape[1]) * chosen[:, None]
        counts, mass = sum_over_ranks(predictions.sum(0)), sum_over_ranks((probabilities * chosen[:, None]).sum(0))
        # p / h of a class without a prediction is 0, not infinite.
        batch = mass * torch.where(counts > 0, 1 / counts.clamp_min(1), 0.0)
        ratio = self.mean_prediction / self.label_histogram.clamp_min(1e-12)
        running = torch.where(self.label_histogram > 0, ratio, 0.0)
        batch, running = batch / batch.sum().clamp_min(1e-12), running / running.sum()
        any_accepted = counts.sum().clamp(max=1)  # an `if` would make the CPU wait for the device
        return any_accepted * (running * (batch + 1e-12).log()).sum()

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Return the lowest and the highest threshold."""
        return {"threshold_min": self.thresholds.min(), "threshold_max": self.thresholds.max()}
