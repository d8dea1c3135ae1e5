"""AdaMatch: Berthelot et al. 2022, "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation"."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import (
    Consistency,
    MomentumWarmup,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    align_distribution,
    at_least_float32,
    ema_update_,
    frozen_bn_stats,
)
from sft_lightning.utils.distributed import mean_over_ranks
from sft_lightning.utils.errors import check_decay, check_fraction
from sft_lightning.utils.transfer import to_device


class AdaMatch(Consistency):
    """Consistency with aligned pseudo-labels and a threshold relative to the labeled confidence.

    Distribution alignment multiplies predictions by the ratio of the running means on labeled and unlabeled examples. A
    pseudo-label is accepted where its aligned probability reaches tau times the mean confidence on the labeled batch.
    Random logit interpolation mixes the labeled logits of a joint pass with those of a pass without unlabeled
    examples, by a random weight for each logit: under batch normalization the two differ, and the network learns to be
    right with the statistics of both.

    Reference setting: tau .9, momentum .999, `lambda_u` ramped up by half a cosine.
    """

    needs_labels: ClassVar[bool] = True
    known_mean: Tensor
    unlabeled_mean: Tensor
    threshold_now: Tensor

    def __init__(
        self, threshold: float = 0.9, momentum: float = 0.999, interpolation: bool = True, **consistency: Any
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, relative to the mean confidence on labeled examples.
            momentum: Momentum of the running means of the predictions.
            interpolation: Whether to interpolate labeled logits, which costs a second pass. Without batch normalization
                both passes are equal, so false saves time.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is outside [0, 1].
        """
        super().__init__(**consistency)
        check_fraction(threshold=threshold)
        check_decay(momentum=momentum)
        self.threshold, self.momentum, self.interpolation = threshold, momentum, interpolation

    def build(self, context: StrategyContext) -> None:
        """Register the running means, uniform until the first update, and the threshold for the log.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        uniform = torch.full((context.num_classes,), 1 / context.num_classes)
        self.register_buffer("known_mean", uniform.clone())
        self.register_buffer("unlabeled_mean", uniform.clone())
        self.register_buffer("threshold_now", torch.tensor(self.threshold))
        self.warmup = MomentumWarmup(self.unbiased_means)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the consistency loss, with interpolated logits in place of the labeled ones."""
        if not self.interpolation:
            return super().loss(step)
        with frozen_bn_stats(step.network):
            alone = step.network.outputs(step.labeled.x).logits
        generator = torch.Generator().manual_seed(step.unlabeled.seed)
        weight = torch.rand(alone.shape, generator=generator, dtype=torch.float32)
        weight = to_device(weight, alone.device).to(alone.dtype)
        outputs = step.labeled_outputs._replace(logits=torch.lerp(alone, step.labeled_outputs.logits, weight))
        return super().loss(step._replace(labeled_outputs=outputs))._replace(labeled_logits=outputs.logits)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the most likely class after alignment, accepted where it reaches the relative threshold."""
        # Of weak views only, like the unlabeled predictions: strong views are less confident.
        labeled = at_least_float32(step.labeled_outputs.logits[: step.labeled.num_weak]).softmax(1)
        unlabeled = logits.softmax(1)
        momentum = self.warmup.next_momentum(self.momentum)
        ema_update_(self.known_mean, mean_over_ranks(labeled), momentum)
        ema_update_(self.unlabeled_mean, mean_over_ranks(unlabeled), momentum)
        self.threshold_now.copy_(self.threshold * mean_over_ranks(labeled.amax(1)))
        confidence, label = align_distribution(unlabeled, self.known_mean, self.unlabeled_mean).max(1)
        return label, (confidence >= self.threshold_now).float()

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Return the absolute threshold of the last batch."""
        return {"threshold": self.threshold_now}
