"""Center loss: Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import check_fraction


class Center(FeatureLoss):
    """Half the squared distance to the center of the class, averaged over the batch (eq. 2).

    Centers move toward the features of each batch (eq. 4). The loss does not keep classes apart: the paper adds it to a
    classifier's loss with a weight of 0.003 to 0.1.

    Reference setting: alpha .5.
    """

    separates_classes = False
    centers: Tensor

    def __init__(self, rate: float = 0.5) -> None:
        """Check and store the rate.

        Args:
            rate: alpha, fraction of the distance that a center moves toward the examples of a batch.

        Raises:
            InputError: The rate is outside [0, 1].
        """
        super().__init__()
        check_fraction(rate=rate)
        self.rate = rate

    def build(self, num_classes: int, num_features: int) -> None:
        """Register the centers at the origin.

        Args:
            num_classes: Number of classes C.
            num_features: Number of features F.
        """
        self.register_buffer("centers", torch.zeros(num_classes, num_features))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss for the current centers, then move them.

        Args:
            features: Features with gradient, (B, F).
            labels: Classes, int64, (B,).
        """
        difference = features - self.centers[labels]
        if self.training:
            one_hot = F.one_hot(labels, len(self.centers)).to(features)
            sums, counts = sum_over_ranks(one_hot.T @ difference.detach()), sum_over_ranks(one_hot.sum(0))
            # Not in place: the backward pass needs the old centers.
            self.centers = self.centers + self.rate * sums / (1 + counts)[:, None]
        return difference.square().sum(1).mean() / 2
