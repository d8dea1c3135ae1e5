"""FlexMatch: Zhang et al. 2021, "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling"."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.losses.unlabeled.base import StrategyContext, StrategyInputs
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.transfer import to_device


class FlexMatch(FixMatch):
    """FixMatch with a threshold for each class that is lower for classes that are learned slowly.

    The learning status of a class is the number of unlabeled examples whose last confident prediction is that class
    (eq. 5). The threshold is tau M(beta) with M(x) = x / (2 - x), where beta is the status divided by the largest
    status or by the number of examples without a confident prediction yet, whichever is larger (eq. 11).

    Reference setting: tau .95; all else as in FixMatch.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    predicted: Tensor
    thresholds: Tensor

    def build(self, context: StrategyContext) -> None:
        """Register a threshold for each class, and the last confident prediction of each example.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        self._classes = context.num_classes
        self.register_buffer("thresholds", torch.zeros(context.num_classes))
        self.register_buffer("predicted", torch.empty(0, dtype=torch.long), persistent=False)

    def start(self, num_unlabeled: int) -> None:
        """Reset the memory to -1, no confident prediction, unless a checkpoint has filled it.

        Args:
            num_unlabeled: Number of unlabeled examples.
        """
        if len(self.predicted) != num_unlabeled:
            self.predicted = torch.full((num_unlabeled,), -1, device=self.thresholds.device)

    def get_extra_state(self) -> Tensor:
        """Return the memory for the checkpoint; a buffer would need its size before the data is known."""
        return self.predicted

    def set_extra_state(self, state: Tensor) -> None:
        """Load the memory from a checkpoint.

        Args:
            state: Value of `get_extra_state`.
        """
        self.predicted = state.to(self.thresholds.device)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the targets of FixMatch with class thresholds, then update the memory of predictions."""
        confidence, label = logits.softmax(1).max(1)
        # Neither `bincount` nor a boolean index: both make the CPU wait for the device.
        counts = self.predicted.new_zeros(self._classes + 1)
        counts = counts.scatter_add_(0, self.predicted + 1, torch.ones_like(self.predicted)).float()
        unused, status = counts[0], counts[1:]
        beta = status / torch.maximum(status.max(), unused).clamp_min(1)
        self.thresholds.copy_(self.threshold * beta / (2 - beta))
        weight = (confidence >= self.thresholds[label]).float()
        confident = confidence >= self.threshold
        indices, labels = (
            all_gather_cat(to_device(step.unlabeled.indices, label.device)),
            all_gather_cat(torch.where(confident, label, -1)),
        )
        padded = nn.functional.pad(self.predicted, (0, 1))  # the last entry takes what is not confident
        padded[torch.where(labels >= 0, indices, len(self.predicted))] = labels
        self.predicted.copy_(padded[:-1])  # in place, so that a skipped step can restore it
        return label, weight

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Return the lowest and the highest threshold."""
        return {"threshold_min": self.thresholds.min(), "threshold_max": self.thresholds.max()}
