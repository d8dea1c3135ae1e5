"""AdaMatch: Berthelot et al. 2022, "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation"."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import (
    Consistency,
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
    """Pseudo-labels aligned with the labeled examples' distribution, accepted relative to the labeled confidence.

    The labeled logits are drawn between those of a pass with the unlabeled examples and those of a pass alone, each
    logit for itself ("random logit interpolation"): with batch normalization the two differ, and the network learns to
    be right under the statistics of both.
    """

    needs_labels: ClassVar[bool] = True
    known_mean: Tensor
    unlabeled_mean: Tensor
    threshold_now: Tensor

    def __init__(self, threshold: float = 0.9, momentum: float = 0.999, interpolation: bool = True) -> None:
        """Sets the threshold.

        Args:
            threshold: tau, as a share of the mean confidence on labeled examples.
            momentum: Of the running means of the predictions.
            interpolation: Draw the labeled logits between two passes; a network without batch normalization needs no
                second one.

        Raises:
            InputError: One is no share.
        """
        super().__init__()
        check_fraction(threshold=threshold)
        check_decay(momentum=momentum)
        self.threshold, self.momentum, self.interpolation = threshold, momentum, interpolation

    def build(self, about: StrategyContext) -> None:
        """Two running means, uniform at first.

        Args:
            about: Sizes.
        """
        uniform = torch.full((about.num_classes,), 1 / about.num_classes)
        self.register_buffer("known_mean", uniform.clone())
        self.register_buffer("unlabeled_mean", uniform.clone())
        self.register_buffer("threshold_now", torch.tensor(self.threshold))

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """The consistency loss; the labeled logits are replaced by interpolated ones."""
        if not self.interpolation:
            return super().loss(step)
        with frozen_bn_stats(step.network):
            alone = step.network.outputs(step.labeled.x).logits
        generator = torch.Generator().manual_seed(step.unlabeled.draw)
        share = to_device(torch.rand(alone.shape, generator=generator, dtype=torch.float32), alone.device).to(
            alone.dtype
        )
        known = step.labeled_outputs._replace(logits=torch.lerp(alone, step.labeled_outputs.logits, share))
        return super().loss(step._replace(labeled_outputs=known))._replace(labeled_logits=known.logits)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """The most likely class after alignment, where its probability reaches the relative threshold."""
        # The weak views only, as the unlabeled ones are: strong ones are less sure.
        labeled = at_least_float32(step.labeled_outputs.logits[: step.labeled.num_weak]).softmax(1)
        free = logits.softmax(1)
        ema_update_(self.known_mean, mean_over_ranks(labeled), self.momentum)
        ema_update_(self.unlabeled_mean, mean_over_ranks(free), self.momentum)
        self.threshold_now.copy_(self.threshold * mean_over_ranks(labeled.amax(1)))
        confidence, label = align_distribution(free, self.known_mean, self.unlabeled_mean).max(1)
        return label, (confidence >= self.threshold_now).float()

    def log_metrics(self) -> Mapping[str, Tensor]:
        """The threshold in use."""
        return {"threshold": self.threshold_now}
