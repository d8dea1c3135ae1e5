"""SupCon: Khosla et al. 2020, "Supervised Contrastive Learning"."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min, check_positive


class SupCon(FeatureLoss):
    """Supervised contrastive loss L_out (eq. 2, with the sum outside the logarithm).

    Each example is pulled toward all others of its class and pushed away from the rest. Two views of each example
    (`labeled_view: both`) are two examples of a class, as in the paper. An example without another of its class in the
    batch is left out of the mean.

    Reference setting: temperature .1, projection to 128 outputs, two views.
    """

    def __init__(self, temperature: float = 0.1, projection: int = 128) -> None:
        """Check and store the settings.

        Args:
            temperature: Temperature tau of the similarities.
            projection: Number of outputs of the projection head, which has one hidden layer as wide as the features; 0
                for no projection.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(temperature=temperature)
        check_min(0, projection=projection)
        self.temperature, self.width = temperature, projection

    def build(self, num_classes: int, num_features: int) -> None:
        """Build the projection head, which is discarded after training.

        Args:
            num_classes: Number of classes C.
            num_features: Number of features F.
        """
        self.project: nn.Module = nn.Identity()
        if self.width:
            hidden = nn.Linear(num_features, num_features)
            self.project = nn.Sequential(hidden, nn.ReLU(), nn.Linear(num_features, self.width))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss over the examples of all processes.

        Args:
            features: Features with gradient, (B, F).
            labels: Classes, int64, (B,).
        """
        z = F.normalize(self.project(features), dim=1)
        z, labels = all_gather_cat(z), all_gather_cat(labels)
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / self.temperature).masked_fill(~others, -torch.inf)
        log_p = similarity - similarity.logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & others
        count = positive.sum(1)
        mean_log_p = torch.where(positive, log_p, 0.0).sum(1) / count.clamp_min(1)
        return -mean_log_p.sum() / (count > 0).sum().clamp_min(1)
