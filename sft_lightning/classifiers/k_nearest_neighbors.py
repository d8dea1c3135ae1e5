"""k nearest neighbors with weighted votes.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
"""

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

    def __init__(self, neighbors: int = 20, temperature: float = 0.07) -> None:
        """Check and store the settings.

        Args:
            neighbors: Number k of neighbors, at most.
            temperature: Temperature of the votes.

        Raises:
            InputError: A setting is out of range.
        """
        check_min(1, neighbors=neighbors)
        check_positive(temperature=temperature)
        self.neighbors, self.temperature = neighbors, temperature

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        self._x, self._y = F.normalize(x.float(), dim=1), y
        counts = y.bincount()
        self._k = min(self.neighbors, int(counts[counts > 0].min()))

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the share of each class in the votes, float32, (N, C), on the CPU."""
        queries = F.normalize(x.detach().cpu().float(), dim=1)
        nearest = find_neighbors(queries, self._x, self._k)
        cosine = torch.stack([(queries * self._x[column]).sum(1) for column in nearest.T], 1)
        votes = torch.zeros(len(x), self.num_classes)
        return votes.scatter_add_(1, self._y[nearest], (cosine / self.temperature).softmax(1))
