"""Metrics of classifiers whose examples have several classes, from torchmetrics."""

import math

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score

from sft_lightning.tasks.classification_metrics import restart

_FEWEST = 5  # examples of a class for a threshold of its own
_TRIED = 200  # thresholds for all classes
# Steps of the histograms, whose size does not depend on the data. They are even in the logit: sure
# networks give nearly all probabilities of a rare class below 0.001, which even steps of the probability would tie.
_STEPS, _LARGEST = 1000, 15.0


class LogitCounts(Metric):
    """Histograms of the logit of each class: of examples without the class, and of those that have it.

    All average precisions of a stage follow from these counts. torchmetrics counts in a loop over all thresholds where
    torch is set to deterministic algorithms, which takes minutes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes, C.
        """
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(2, num_classes, _STEPS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits, (B, C); below -15 and above 15, they count as these.
            targets: 1 for each class of an example, 0 for the others, int64, (B, C).
        """
        share = (logits.clamp(-_LARGEST, _LARGEST) + _LARGEST) / (2 * _LARGEST)
        rows = targets * self.num_classes + torch.arange(self.num_classes, device=targets.device)
        cells = (rows * _STEPS + (share * (_STEPS - 1)).long()).flatten()
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the average precision of each class, float64, NaN without an example, and how many have it, (C,)."""
        others, having = self.counts.flip(2).cumsum(2).double()
        total = having[:, -1]
        gained = having.diff(dim=1, prepend=torch.zeros_like(total)[:, None])
        precision = having / (having + others).clamp_min(1)
        return (gained * precision).sum(1) / total, total.long()


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
        self.scores = MetricCollection(
            {
                "micro_f1": MultilabelF1Score(num_classes, average="micro", validate_args=False),
                "macro_f1": MultilabelF1Score(num_classes, average="macro", validate_args=False),
                "exact_match": MultilabelExactMatch(num_classes, validate_args=False),
            },
            compute_groups=False,
        )
        self.counts = LogitCounts(num_classes)
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
        self.counts.update(logits, targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, store the precision `by_class`, and reset."""
        values: dict[str, Tensor] = {"loss": self.loss.compute(), **self.scores.compute()}
        precision, counts = self.counts.compute()
        values["mean_average_precision"] = precision[counts > 0].mean()  # NaN where no class has an example
        self.by_class = precision.float().cpu()
        restart(self.loss, self.scores, self.counts)
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


def fit_shared_threshold(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Choose one probability from which every class is predicted, by the best mean F1 of an example.

    With few labels, the best threshold of each class is one of chance: with 200 labels of 23 classes, one for all gives
    a mean F1 by example of 0.53, those of `fit_thresholds` 0.43 (logistic regression on words, mean of three draws,
    `scripts/bench/solve_sets.py`).

    Args:
        probabilities: Probabilities of held-out examples, (N, C).
        targets: 1 for each class of an example and 0 for the others, (N, C).

    Returns:
        float32, (C,), of equal values.
    """
    levels = probabilities.float().flatten().sort(descending=True).values
    # Numbers of predicted pairs, in even steps of their logarithm: few are right, so that these steps matter.
    counts = torch.logspace(0, math.log10(max(1, len(levels) - 1)), _TRIED).round().long().unique()
    limits = torch.cat([(levels[:1] + 1) / 2, (levels[counts - 1] + levels[counts.clamp_max(len(levels) - 1)]) / 2])
    scores = [compute_example_f1((probabilities >= limit).long(), targets).double().mean() for limit in limits]
    return limits[torch.stack(scores).argmax()].expand(targets.shape[1]).clone()


def compute_example_f1(decided: Tensor, targets: Tensor) -> Tensor:
    """Compute the F1 of each example over its classes, float32, (N,); 1 where none are predicted and it has none.

    Args:
        decided: 1 for each predicted class and 0 for the others, int64, (N, C).
        targets: 1 for each class of an example and 0 for the others, int64, (N, C).
    """
    sizes = decided.sum(1) + targets.sum(1)
    return torch.where(sizes > 0, 2 * (decided * targets).sum(1) / sizes.clamp_min(1), 1.0)


def compute_f1(decided: Tensor, targets: Tensor) -> Tensor:
    """Compute the F1 of each class, float64, (C,); 0 where neither predictions nor targets have it.

    Args:
        decided: 1 for each predicted class and 0 for the others, int64, (N, C).
        targets: 1 for each class of an example and 0 for the others, int64, (N, C).
    """
    both = (decided * targets).sum(0)
    return 2 * both / (decided.sum(0) + targets.sum(0)).clamp_min(1).double()
