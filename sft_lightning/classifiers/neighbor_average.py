"""What classifiers that average over nearest neighbors share: kept examples with their class probabilities."""

import math
from abc import abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.base import Classifier, to_logits
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.utils.errors import check_min

Metric = Literal["euclidean", "cosine"]


class NeighborAverage(Classifier):
    """Classifier that keeps the class probabilities of labeled and unlabeled examples, and averages the nearest ones.

    A subclass sets `features`, scaled by `_scale`, and `probabilities` in `_fit`, labeled examples first.

    Attributes:
        features: Features of all examples that were given to `fit`, float32, (M, F).
        probabilities: Their class probabilities, float32, (M, C).
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = (*Classifier.fitted_buffers, "features", "probabilities")
    learns_from_unlabeled: ClassVar[bool] = True
    features: Tensor
    probabilities: Tensor

    def __init__(self, neighbors: int | None, metric: Metric, approximate: bool) -> None:
        """Check and store the settings.

        Args:
            neighbors: Number k of neighbors of each example, or None for a number of the subclass.
            metric: Distance: `cosine` or `euclidean`.
            approximate: Whether to search neighbors approximately.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(1, neighbors=neighbors)
        self.neighbors, self.metric, self.approximate = neighbors, metric, approximate

    @property
    def unlabeled_proba(self) -> Tensor:
        """Class probabilities of the unlabeled examples that were given to `fit`, float32, (M, C)."""
        return self.probabilities[self.num_labels :]

    def average_neighbors(self, x: Tensor) -> Tensor:
        """Return the mean probabilities of the k nearest examples, float32, (N, C).

        Args:
            x: Features, (N, F).
        """
        x = self._scale(x.detach().to(self.features))
        # An index, which is made anew, pays for more queries than it has lists.
        approximate = self.approximate and len(x) > 4 * math.sqrt(len(self.features))
        nearest = find_neighbors(x, self.features, self.num_neighbors, approximate=approximate)
        total = x.new_zeros(len(x), self.num_classes)
        for column in nearest.T:  # one after the other: (N, k, C) might not fit
            total += self.probabilities[column]
        return total / self.num_neighbors

    @property
    def num_neighbors(self) -> int:
        """Number k of neighbors."""
        return self.neighbors or self.choose_neighbors()

    @abstractmethod
    def choose_neighbors(self) -> int:
        """Return the number of neighbors where the user gives none."""

    def _scale(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if self.metric == "cosine" else x


class AverageLayer(nn.Module):
    """The exact `average_neighbors` as a layer, as logits: one product with all examples, (N, M) numbers at a time."""

    center: Tensor
    examples: Tensor
    squares: Tensor
    probabilities: Tensor

    def __init__(self, classifier: NeighborAverage) -> None:
        """Copy what the classifier has learned.

        Args:
            classifier: Classifier after `fit`.
        """
        super().__init__()
        self.metric, self.k, self.has_sets = classifier.metric, classifier.num_neighbors, classifier.has_sets
        center = classifier.features.mean(0)  # as `find_neighbors` does
        examples = classifier.features - center
        for name, tensor in {
            "center": center, "examples": examples, "squares": examples.square().sum(1),
            "probabilities": classifier.probabilities,
        }.items():  # fmt: skip
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean probabilities, (N, C).

        Args:
            x: Features, (N, F).
        """
        x = F.normalize(x, dim=1) if self.metric == "cosine" else x
        distances = self.squares - 2 * (x - self.center) @ self.examples.T
        nearest = distances.topk(self.k, 1, largest=False).indices
        return to_logits(self.probabilities[nearest].mean(1), self.has_sets)
