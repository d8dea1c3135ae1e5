"""Metrics of features without the classifier: neighbors, class means, and spread."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from sft_lightning.networks.heads import fit_class_means
from sft_lightning.tasks.classification_metrics import restart


class Spread(Metric):
    """Mean squared distance to the class mean, over that of the class means to the mean of all: 0 is collapse."""

    full_state_update = False
    sums: Tensor
    counts: Tensor
    squares: Tensor

    def __init__(self, num_classes: int, num_features: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes, C.
            num_features: Number of features, F.
        """
        super().__init__()
        self.add_state("sums", torch.zeros(num_classes, num_features), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("squares", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: Features, (B, F).
            labels: Labels, int64, (B,).
        """
        hot = F.one_hot(labels, len(self.counts)).to(features)
        self.sums += hot.T @ features
        self.counts += hot.sum(0)
        self.squares += features.square().sum()

    def compute(self) -> Tensor:
        """Return the spread within classes divided by that between them."""
        means = self.sums / self.counts.clamp_min(1)[:, None]
        of_means = (self.counts * means.square().sum(1)).sum()
        total = self.counts.sum().clamp_min(1)
        of_all = (self.sums.sum(0) / total).square().sum() * total
        return (self.squares - of_means).clamp_min(0) / (of_means - of_all).clamp_min(1e-12)


class FeatureMetrics(nn.Module):
    """k-nearest-neighbor and nearest-class-mean accuracy against remembered labeled features, and the spread.

    Neighbors vote with exp(cos / 0.07), as in Wu et al. 2018.
    """

    _TEMPERATURE = 0.07

    def __init__(self, num_classes: int, num_features: int, neighbors: int = 20) -> None:
        """Create the metrics.

        Args:
            num_classes: Number of classes, C.
            num_features: Number of features, F.
            neighbors: Number k of neighbors; fewer where fewer examples are stored.
        """
        super().__init__()
        self.num_classes, self.neighbors = num_classes, neighbors
        self.knn = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.class_mean = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.spread = Spread(num_classes, num_features)
        self._known: tuple[Tensor, Tensor] | None = None

    def remember(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Store the labeled features that evaluated ones are compared with.

        Args:
            features: Features, float32, (N, F).
            labels: Labels, int64, (N,).

        Returns:
            Weight and bias of the nearest-class-mean classifier.
        """
        self._known = F.normalize(features, dim=1), labels
        self._center = features.mean(0)  # the spread is the same from anywhere, and rounds least from here
        self._means = fit_class_means(features, labels, self.num_classes)
        return self._means

    def forget(self) -> None:
        """Drop the stored features; only the spread is measured from then on."""
        self._known = None

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: Features, (B, F).
            labels: Labels, int64, (B,).
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self._known is None:
                self.spread.update(features, labels)
                return
            known, known_labels = self._known
            nearest = (F.normalize(features, dim=1) @ known.T).topk(min(self.neighbors, len(known)), 1)
            votes = features.new_zeros(len(features), self.num_classes)
            votes.scatter_add_(1, known_labels[nearest.indices], (nearest.values / self._TEMPERATURE).exp())
            self.knn.update(votes.argmax(1), labels)
            self.class_mean.update(F.linear(features, *self._means).argmax(1), labels)
            self.spread.update(features - self._center, labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, and reset the metrics."""
        metrics: dict[str, Metric] = {"spread": self.spread}
        if self._known is not None:
            metrics = {"knn_accuracy": self.knn, "class_mean_accuracy": self.class_mean, **metrics}
        values = {name: metric.compute() for name, metric in metrics.items()}
        restart(*metrics.values())
        return values
