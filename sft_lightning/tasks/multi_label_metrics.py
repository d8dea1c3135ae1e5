"""Metrics of classifiers whose examples have several classes, from torchmetrics."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

from sft_lightning.tasks.classification_metrics import restart

_STEPS = 1000  # thresholds of the precision-recall curves, whose size does not depend on the data


class ClassCounts(Metric):
    """Number of examples that have each class."""

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes, C.
        """
        super().__init__()
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, targets: Tensor) -> None:
        """Add a batch.

        Args:
            targets: 1 for each class of an example, 0 for the others, int64, (B, C).
        """
        self.counts += targets.sum(0)

    def compute(self) -> Tensor:
        """Return the counts, int64, (C,)."""
        return self.counts.clone()


class MultiLabelMetrics(nn.Module):
    """Loss, mean average precision, F1 at a probability of 0.5, and the share of examples with all classes right.

    The average precision of a class is that of its precision-recall curve at 1,000 thresholds from 0 to 1; classes
    without an example are left out of the mean. F1 is `micro` over all pairs of an example and a class, and `macro` as
    the mean over classes.
    """

    confusion: Tensor | None = None
    counted: Tensor | None = None

    def __init__(self, num_classes: int) -> None:
        """Create the metrics.

        Args:
            num_classes: Number of classes, at least 1.
        """
        super().__init__()
        self.loss = MeanMetric()
        self.scores = MetricCollection(
            {
                "average_precision": MultilabelAveragePrecision(
                    num_classes, average="none", thresholds=_STEPS, validate_args=False
                ),
                "micro_f1": MultilabelF1Score(num_classes, average="micro", validate_args=False),
                "macro_f1": MultilabelF1Score(num_classes, average="macro", validate_args=False),
                "exact_match": MultilabelExactMatch(num_classes, validate_args=False),
            },
            compute_groups=False,
        )
        self.class_counts = ClassCounts(num_classes)
        self.by_class: Tensor | None = None

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits, (B, num_classes).
            targets: 1 for each class of an example, 0 for the others, int64, (B, num_classes).
        """
        logits = logits.float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
        self.loss.update(loss, weight=len(targets))
        self.scores.update(logits.sigmoid(), targets)
        self.class_counts.update(targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, store the precision `by_class`, and reset."""
        values: dict[str, Tensor] = {"loss": self.loss.compute(), **self.scores.compute()}
        precision, counts = values.pop("average_precision"), self.class_counts.compute()
        present = precision[counts > 0]
        values["mean_average_precision"] = present.mean() if len(present) else precision.new_tensor(torch.nan)
        self.by_class = torch.where(counts > 0, precision, torch.nan).cpu()
        restart(self.loss, self.scores, self.class_counts)
        return {name: value.to(torch.float32) for name, value in values.items()}
