"""SupCon: Khosla et al. 2020, "Supervised Contrastive Learning"."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min, check_positive


class SupCon(FeatureLoss):
    """Each example is drawn to all others of its class and away from the rest (eq. 2, the sum outside the logarithm).

    Two views of each picture (`labeled_view: both`) are two examples of a class, as in the paper. An example without
    another of its class in the batch has nothing to be drawn to and is left out of the mean.
    """

    def __init__(self, temperature: float = 0.1, projection: int = 128) -> None:
        """Sets both.

        Args:
            temperature: tau.
            projection: Outputs of the projection head, one hidden layer as wide as the features; 0 for none.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__()
        check_positive(temperature=temperature)
        check_min(0, projection=projection)
        self.temperature, self.width = temperature, projection

    def build(self, num_classes: int, num_features: int) -> None:
        """The projection head, which is thrown away after training.

        Args:
            num_classes: C.
            num_features: F.
        """
        self.project: nn.Module = nn.Identity()
        if self.width:
            hidden = nn.Linear(num_features, num_features)
            self.project = nn.Sequential(hidden, nn.ReLU(), nn.Linear(num_features, self.width))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Over the examples of all processes.

        Args:
            features: (B, F).
            labels: int64, (B,).
        """
        z = F.normalize(self.project(features), dim=1)
        z, labels = all_gather_cat(z), all_gather_cat(labels)
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / self.temperature).masked_fill(~others, -torch.inf)
        log_share = similarity - similarity.logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & others
        count = positive.sum(1)
        drawn = torch.where(positive, log_share, 0.0).sum(1) / count.clamp_min(1)
        return -drawn.sum() / (count > 0).sum().clamp_min(1)
