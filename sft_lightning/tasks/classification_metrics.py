"""Metrics of all classifiers, from torchmetrics, and confidence intervals of shares."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)


def restart(*metrics: Metric | MetricCollection) -> None:
    """Reset metrics so that `fit` can update them after `validate`, which leaves inference tensors behind.

    Args:
        metrics: Metrics to reset, from torchmetrics.
    """
    with torch.inference_mode(False):
        for metric in metrics:
            metric.reset()


def wilson(share: float, count: int) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a share (Wilson 1927).

    Args:
        share: Observed share, a whole number of examples divided by `count`.
        count: Number of examples.
    """
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class ScoreCounts(Metric):
    """Histograms of the predicted probability of each class, in 127 steps: for other classes, and for the class.

    All precision-recall curves of a stage follow from these counts, whose size does not depend on the data.
    """

    STEPS = 127  # maximum number of thresholds in TensorBoard
    MOST_CLASSES = 100  # nobody reads more curves than that

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes, K.
        """
        super().__init__()
        self.wanted = num_classes <= self.MOST_CLASSES
        shape = (2, num_classes, self.STEPS) if self.wanted else (0,)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: Probabilities, (B, K).
            labels: Labels, int64, (B,).
        """
        if self.wanted:
            is_class = nn.functional.one_hot(labels, probabilities.shape[1])
            rows = is_class * probabilities.shape[1] + torch.arange(probabilities.shape[1], device=labels.device)
            steps = (probabilities * (self.STEPS - 1)).long().clamp(0, self.STEPS - 1)
            cells = (rows * self.STEPS + steps).flatten()
            self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))  # `bincount` waits for the device

    def compute(self) -> Tensor:
        """Return the counts, int64, (2, K, 127): examples of other classes, then of the class, by its probability."""
        return self.counts


def balance_accuracy(confusion: Tensor) -> Tensor:
    """Return the mean share of each class that is predicted correctly, over the classes that have examples, a scalar.

    Args:
        confusion: Number of examples of each class (rows) by predicted class, (C, C).
    """
    counts = confusion.sum(1)
    recalls = confusion.diagonal().double() / counts.clamp_min(1)
    return recalls.sum() / (counts > 0).sum().clamp_min(1)


class ClassifierMetrics(nn.Module):
    """Loss, accuracies, macro-F1, calibration error (15 bins, L1) and the confusion matrix of one stage."""

    def __init__(self, num_classes: int) -> None:
        """Create the metrics.

        Args:
            num_classes: Number of classes, at least 2.
        """
        super().__init__()
        self.loss = MeanMetric()
        self.scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "macro_f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
                "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, validate_args=False),
                "confusion": MulticlassConfusionMatrix(num_classes, validate_args=False),
            },
            # Accuracy and F1 average differently, so their states cannot be shared.
            compute_groups=False,
        )
        self.score_counts = ScoreCounts(num_classes)
        self.confusion: Tensor | None = None
        self.counted: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits, (B, num_classes).
            labels: Labels, int64, (B,).
        """
        logits = logits.float()
        self.loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
        probabilities = logits.softmax(1)
        self.scores.update(probabilities, labels)
        self.score_counts.update(probabilities, labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, store `confusion` and `counted`, and reset."""
        values: dict[str, Tensor] = {"loss": self.loss.compute(), **self.scores.compute()}
        values["balanced_accuracy"] = balance_accuracy(values["confusion"])
        self.confusion = values.pop("confusion").cpu()
        self.counted = self.score_counts.compute().cpu() if self.score_counts.wanted else None
        restart(self.loss, self.scores, self.score_counts)
        return {name: value.to(torch.float32) for name, value in values.items()}
