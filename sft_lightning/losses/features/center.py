"""Center loss: Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import check_fraction


class Center(FeatureLoss):
    """Half the squared distance to the center of the class (eq. 2, mean over the batch); centers follow (eq. 4).

    It keeps no classes apart: the paper adds it to a classifier's loss, with a weight of 0.003 to 0.1.
    """

    separates_classes = False
    centers: Tensor

    def __init__(self, rate: float = 0.5) -> None:
        """Sets the rate.

        Args:
            rate: alpha, how far a center moves toward the examples of a batch.

        Raises:
            InputError: It is no share.
        """
        super().__init__()
        check_fraction(rate=rate)
        self.rate = rate

    def build(self, num_classes: int, num_features: int) -> None:
        """Centers at the origin.

        Args:
            num_classes: C.
            num_features: F.
        """
        self.register_buffer("centers", torch.zeros(num_classes, num_features))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss to the centers as they were; then they move.

        Args:
            features: (B, F).
            labels: int64, (B,).
        """
        difference = features - self.centers[labels]
        if self.training:
            hot = F.one_hot(labels, len(self.centers)).to(features)
            sums, counts = sum_over_ranks(hot.T @ difference.detach()), sum_over_ranks(hot.sum(0))
            # Not in place: the gradient needs the centers as they were.
            self.centers = self.centers + self.rate * sums / (1 + counts)[:, None]
        return difference.square().sum(1).mean() / 2
