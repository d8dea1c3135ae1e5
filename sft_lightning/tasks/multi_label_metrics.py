"""Metrics of classifiers whose examples have several classes, from torchmetrics."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

from sft_lightning.tasks.classification_metrics import restart

_FEWEST = 5  # examples of a class for a threshold of its own
# Thresholds of the precision-recall curves, whose size does not depend on the data. They are even in the logit: sure
# networks give nearly all probabilities of a rare class below 0.001, which even steps of the probability would tie.
_STEPS, _LARGEST = 1000, 15.0


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

    The average precision of a class is that of its precision-recall curve at 1,000 thresholds of the logit; classes
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
        steps = torch.linspace(-_LARGEST, _LARGEST, _STEPS).sigmoid()
        self.scores = MetricCollection(
            {
                "average_precision": MultilabelAveragePrecision(
                    num_classes, average="none", thresholds=steps, validate_args=False
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


def fit_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Choose the probability of each class from which it is predicted, by the best F1 of validation examples.

    Classes of fewer than 5 such examples keep 0.5, since the best threshold of a few is one of chance.

    Args:
        probabilities: Probabilities, (N, C).
        targets: 1 for each class of an example and 0 for the others, (N, C).

    Returns:
        float32, (C,).
    """
    thresholds = torch.full((targets.shape[1],), 0.5)
    for k in range(targets.shape[1]):
        p, order = probabilities[:, k].float().sort(descending=True)
        right = targets[order, k].cumsum(0)
        if int(targets[:, k].sum()) >= _FEWEST:
            f1 = 2 * right / (torch.arange(1, len(p) + 1) + targets[:, k].sum())
            ends = torch.cat([p[1:] < p[:-1], torch.tensor([True])])  # equal probabilities are predicted together
            best = int(torch.where(ends, f1, -torch.ones(())).argmax())
            below = p[best + 1] if best + 1 < len(p) else torch.zeros(())
            thresholds[k] = (p[best] + below) / 2
    return thresholds


def compute_f1(decided: Tensor, targets: Tensor) -> Tensor:
    """Compute the F1 of each class, float64, (C,); 0 where neither predictions nor targets have it.

    Args:
        decided: 1 for each predicted class and 0 for the others, int64, (N, C).
        targets: 1 for each class of an example and 0 for the others, int64, (N, C).
    """
    both = (decided * targets).sum(0)
    return 2 * both / (decided.sum(0) + targets.sum(0)).clamp_min(1).double()
