"""Multi-label classification: any number of several classes for each example."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.tasks.base import Task
from sft_lightning.tasks.multi_label_metrics import MultiLabelMetrics
from sft_lightning.utils.errors import InputError, check_decay

MultiLabelLoss = Literal["binary_cross_entropy", "asymmetric"]
# Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification": their settings for most data.
_FOCUS, _MARGIN = 4.0, 0.05


class MultiLabel(Task):
    """Any of several classes, by a linear layer and a loss for each class.

    Targets are 1 for each class of an example and 0 for the others, int64, (B, C); outputs are logits, (B, C).
    """

    name: ClassVar[str] = "multi_label"
    monitor: ClassVar[tuple[str, str]] = ("val/mean_average_precision", "max")

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.0, loss: MultiLabelLoss = "binary_cross_entropy"
    ) -> None:
        """Keep the settings.

        Args:
            num_classes: Number of classes C.
            label_smoothing: Share s of the target: 1 becomes 1 - s / 2, and 0 becomes s / 2.
            loss: `binary_cross_entropy`, or the `asymmetric` loss of Ridnik et al. 2021, under which classes that an
                example obviously lacks count for less.

        Raises:
            InputError: A setting is out of its range.
        """
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}: a classifier needs labeled data of at least 1 class")
        check_decay(label_smoothing=label_smoothing)
        if loss == "asymmetric" and label_smoothing:
            raise InputError(f"label_smoothing is {label_smoothing}, which the asymmetric loss replaces: leave it out")
        self.num_classes, self.label_smoothing, self.kind = num_classes, label_smoothing, loss

    def build_head(self, num_features: int) -> nn.Linear:
        """Build a linear layer from features, (B, F), to logits, (B, C)."""
        return nn.Linear(num_features, self.num_classes)

    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Average the losses of all classes, weighted by class."""
        each = self._losses(outputs, target)
        if weight is not None:
            weight = weight.to(each)
            return (each * weight).sum() / (weight.sum() * len(each))
        return each.mean()

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        wanted = target.to(outputs.dtype)
        if self.kind == "binary_cross_entropy":
            smooth = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, smooth, reduction="none")
        logits = outputs.float()
        p = logits.sigmoid()
        absent = (p - _MARGIN).clamp_min(0)  # a class that is obviously absent costs nothing
        positive = -F.logsigmoid(logits)
        negative = -(absent**_FOCUS) * torch.log((1 - absent).clamp_min(1e-8))
        return torch.where(target > 0, positive, negative)

    def build_metrics(self) -> MultiLabelMetrics:
        """Build loss, mean average precision, F1 and the share of examples with all classes right."""
        return MultiLabelMetrics(self.num_classes)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, (B, C)."""
        return outputs.sigmoid()

    def is_right(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return whether all classes of each example are predicted correctly, at a probability of 0.5."""
        return ((outputs > 0) == (target > 0)).all(1)

    def is_known(self, target: Tensor) -> Tensor:
        """Return which examples have labels."""
        return target[:, 0] >= 0
