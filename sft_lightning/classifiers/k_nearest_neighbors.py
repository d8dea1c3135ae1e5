"""k nearest neighbors with weighted votes.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers.base import Classifier
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.utils.errors import check_min, check_positive


class KNearestNeighbors(Classifier):
    """Votes of the labeled examples with the most similar features, each with exp(cos / temperature).

    There are at most as many neighbors as the smallest class has labels: more would outvote it even among its own.
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = (*Classifier.fitted_buffers, "features", "labels")
    takes_sets: ClassVar[bool] = False  # votes of a few do not say how rare a class is
    features: Tensor
    labels: Tensor

    def __init__(self, neighbors: int = 20, temperature: float = 0.07) -> None:
        """Check and store the settings.

        Args:
            neighbors: Number k of neighbors, at most.
            temperature: Temperature of the votes.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(1, neighbors=neighbors)
        check_positive(temperature=temperature)
        self.neighbors, self.temperature = neighbors, temperature

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        self.features, self.labels = F.normalize(x.float(), dim=1), y

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the share of each class in the votes, float32, (N, C)."""
        queries = F.normalize(x.detach().to(self.features), dim=1)
        k = min(self.neighbors, int(self.class_counts[self.class_counts > 0].min()))
        nearest = find_neighbors(queries, self.features, k)
        cosine = torch.stack([(queries * self.features[column]).sum(1) for column in nearest.T], 1)
        votes = queries.new_zeros(len(x), self.num_classes)
        # One neighbor after the other, as a GPU adds up what meets in one place in any order.
        for column, vote in zip(nearest.T, (cosine / self.temperature).softmax(1).T, strict=True):
            votes += vote[:, None] * F.one_hot(self.labels[column], self.num_classes)
        return votes
