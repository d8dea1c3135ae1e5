"""FlexMatch: Zhang et al. 2021, "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling"."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sft_lightning.losses.unlabeled.base import StrategyContext, StrategyInputs
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.transfer import to_device


class FlexMatch(FixMatch):
    """FixMatch with a threshold for each class, lower for classes that are learned slowly.

    A class's learning status is how many unlabeled examples were last predicted as it with confidence (eq. 5); the
    threshold is tau * M(beta), beta the status relative to the best class or to the number of examples not yet used
    (eq. 11), M(x) = x / (2 - x).
    """

    predicted: Tensor
    thresholds: Tensor

    def build(self, about: StrategyContext) -> None:
        """One threshold a class.

        Args:
            about: Sizes.
        """
        self._classes = about.num_classes
        self.register_buffer("thresholds", torch.zeros(about.num_classes))
        self.register_buffer("predicted", torch.empty(0, dtype=torch.long), persistent=False)

    def start(self, num_unlabeled: int) -> None:
        """Nothing was predicted yet: -1 for all.

        Args:
            num_unlabeled: Number of unlabeled examples.
        """
        if len(self.predicted) != num_unlabeled:
            self.predicted = torch.full((num_unlabeled,), -1, device=self.thresholds.device)

    def get_extra_state(self) -> Tensor:
        """The memory, for the checkpoint: its size is that of the data, which the network is built without."""
        return self.predicted

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over the memory of a checkpoint.

        Args:
            state: From `get_extra_state`.
        """
        self.predicted = state.to(self.thresholds.device)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """As FixMatch with the thresholds of the classes; then the status is brought up to date."""
        confidence, label = logits.softmax(1).max(1)
        # Neither `bincount` nor a mask as an index: for both the CPU waits for the device.
        counts = self.predicted.new_zeros(self._classes + 1)
        counts = counts.scatter_add_(0, self.predicted + 1, torch.ones_like(self.predicted)).float()
        unused, status = counts[0], counts[1:]
        beta = status / torch.maximum(status.max(), unused).clamp_min(1)
        self.thresholds.copy_(self.threshold * beta / (2 - beta))
        weight = (confidence >= self.thresholds[label]).float()
        sure = confidence >= self.threshold
        indices, labels = (
            all_gather_cat(to_device(step.unlabeled.indices, label.device)),
            all_gather_cat(torch.where(sure, label, -1)),
        )
        beyond = nn.functional.pad(self.predicted, (0, 1))  # one more place, for those that are not sure
        beyond[torch.where(labels >= 0, indices, len(self.predicted))] = labels
        self.predicted.copy_(beyond[:-1])  # in place: a step that is left out takes it back
        return label, weight

    def log_metrics(self) -> Mapping[str, Tensor]:
        """The lowest and the highest threshold."""
        return {"threshold_min": self.thresholds.min(), "threshold_max": self.thresholds.max()}
