"""Logistic regression whose answers are smoothed over unlabeled neighbors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.base import LEAST, LinearClassifier, estimate_odds, to_logits
from sft_lightning.classifiers.logistic_regression import LogisticRegression
from sft_lightning.classifiers.neighbor_average import AverageLayer, Metric, NeighborAverage

NEIGHBORS = 50


class SmoothedLogisticRegression(NeighborAverage):
    """Multiply the probabilities of logistic regression by their mean over the nearest examples.

    Logistic regression, fitted to the labels, answers for all unlabeled examples; labeled ones keep their label. The
    probability of a class is in proportion to the model's own times the mean over the k nearest of these examples. It
    is one step of the smoothing of Huang et al. 2021, "Combining Label Propagation and Simple Models Out-performs Graph
    Neural Networks" (Correct and Smooth), and the soft voting of Chen et al. 2022, "Contrastive Test-Time Adaptation".

    Where examples have several classes, each is smoothed by itself: the odds of both are multiplied, and divided by
    those of the class among the labels, which both contain.

    Unlike label spreading, it needs no graph that separates the classes, and suits features of published encoders
    (`scripts/bench/smoothing.py`). Memory for M examples, F features and C classes: 4 M (F + C) bytes.
    """

    linear: LogisticRegression

    def __init__(
        self,
        neighbors: int | None = None,
        strength: float | None = None,
        max_iter: int = 1000,
        metric: Metric = "cosine",
        approximate: bool = False,
    ) -> None:
        """Check and store the settings.

        Args:
            neighbors: Number k of neighbors; null for 50, or less where there are fewer than 100 examples.
            strength: Inverse of the L2 penalty of logistic regression; null for 30 divided by the number of features.
            max_iter: Number of iterations of L-BFGS, at most.
            metric: Distance: `cosine`, which suits features of networks, or `euclidean`.
            approximate: Whether to search neighbors approximately with faiss (extra `graph`), for more than some
                200,000 examples.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(neighbors, metric, approximate)
        self.linear = LogisticRegression(strength, max_iter)

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        self.linear.fit(x, y, num_classes=self.num_classes)
        self.features = self._scale(torch.cat([x.float(), unlabeled.float()]))
        self.probabilities = smooth_from(self.linear, y, unlabeled)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the normalized product of both probabilities, float32, (N, C)."""
        return multiply(self.linear.predict_proba(x), self.average_neighbors(x), self.linear)

    def make_layer(self) -> nn.Module:
        """Return the sum of both logarithms as a layer."""
        return _SumOfLogs(self)

    def choose_neighbors(self) -> int:
        """Return 50, or half of the examples where there are fewer than 100."""
        return max(1, min(NEIGHBORS, len(self.features) // 2))


def smooth_from(linear: LinearClassifier, y: Tensor, unlabeled: Tensor) -> Tensor:
    """Return the probabilities that neighbors vote with: labels, then those of unlabeled examples, (N + M, C).

    Args:
        linear: Fitted classifier.
        y: Classes of the labeled examples, int64, (N,), or 1 for each of their classes and 0 for the others, (N, C).
        unlabeled: Features of the unlabeled examples, (M, F).
    """
    own = y if linear.has_sets else F.one_hot(y, linear.num_classes)
    return torch.cat([own.float(), linear.predict_proba(unlabeled)])


def multiply(own: Tensor, neighbors: Tensor, linear: LinearClassifier) -> Tensor:
    """Return the product of two kinds of probabilities, scaled to a sum of 1, or of odds over those of labels, (N, C).

    Args:
        own: Probabilities of the classifier, (N, C).
        neighbors: Others of the same examples, (N, C); below 1e-6 they count as 1e-6.
        linear: Fitted classifier.
    """
    if linear.has_sets:
        return (to_logits(own, True) + to_logits(neighbors, True) - estimate_odds(linear.class_counts)).sigmoid()
    return (own.clamp_min(LEAST).log() + neighbors.clamp_min(LEAST).log()).softmax(1)


class _SumOfLogs(nn.Module):
    reference: Tensor

    def __init__(self, classifier: SmoothedLogisticRegression) -> None:
        super().__init__()
        self.linear, self.average = classifier.linear.make_layer(), AverageLayer(classifier)
        self.has_sets = classifier.has_sets
        self.register_buffer("reference", estimate_odds(classifier.class_counts) if self.has_sets else torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        if self.has_sets:
            own = to_logits(logits.sigmoid(), True)
        else:
            own = logits.log_softmax(1).clamp_min(torch.tensor(LEAST).log())
        total: Tensor = own + self.average(x) - self.reference
        return total
