"""AdaMatch: Berthelot et al. 2022, "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation"."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.errors import decays, shares
from sft_lightning.losses.unlabeled import (
    About,
    Consistency,
    Step,
    aligned,
    at_least_float32,
    mean_over_ranks,
    moved_toward,
)


class AdaMatch(Consistency):
    """Pseudo-labels aligned with the labeled examples' distribution, accepted relative to the labeled confidence.

    The paper's random interpolation of logits is left out.
    """

    needs_labels: ClassVar[bool] = True
    known_mean: Tensor
    unlabeled_mean: Tensor
    threshold_now: Tensor

    def __init__(self, threshold: float = 0.9, momentum: float = 0.999) -> None:
        """Sets the threshold.

        Args:
            threshold: tau, as a share of the mean confidence on labeled examples.
            momentum: Of the running means of the predictions.

        Raises:
            InputError: One is no share.
        """
        super().__init__()
        shares(threshold=threshold)
        decays(momentum=momentum)
        self.threshold, self.momentum = threshold, momentum

    def build(self, about: About) -> None:
        """Two running means, uniform at first.

        Args:
            about: Sizes.
        """
        uniform = torch.full((about.num_classes,), 1 / about.num_classes)
        self.register_buffer("known_mean", uniform.clone())
        self.register_buffer("unlabeled_mean", uniform.clone())
        self.register_buffer("threshold_now", torch.tensor(self.threshold))

    def targets(self, logits: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The most likely class after alignment, where its probability reaches the relative threshold."""
        labeled, free = at_least_float32(step.known.logits).softmax(1), logits.softmax(1)
        moved_toward(self.known_mean, mean_over_ranks(labeled), self.momentum)
        moved_toward(self.unlabeled_mean, mean_over_ranks(free), self.momentum)
        self.threshold_now.copy_(self.threshold * mean_over_ranks(labeled.amax(1)))
        confidence, label = aligned(free, self.known_mean, self.unlabeled_mean).max(1)
        return label, (confidence >= self.threshold_now).float()

    def told(self) -> Mapping[str, Tensor]:
        """The threshold in use."""
        return {"threshold": self.threshold_now}
