"""VICReg: Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min

_EPSILON = 1e-4  # added to each variance (eq. 1)


class VICReg(ViewObjective):
    """Distance of the two views, plus a hinge on each output's deviation and the squared covariances (eq. 6).

    It needs no negatives and no momentum network. Statistics are those of the examples of all processes.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): weights 25, 25 and 1, projection
    2048 - 2048 - 2048, LARS with rate .3 and weight decay 1e-4, crops from .2; linear accuracy 92.1.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden: int = 2048,
        projection: int = 2048,
    ) -> None:
        """Check and store the settings.

        Args:
            invariance: Weight lambda of the distance between views.
            variance: Weight mu of the hinge that keeps each output's standard deviation above 1.
            covariance: Weight nu of the covariances between outputs.
            hidden: Number of outputs of the projector's two hidden layers.
            projection: Number of outputs of the projector.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(0, invariance=invariance, variance=variance, covariance=covariance)
        check_min(1, hidden=hidden, projection=projection)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.hidden, self.projection = hidden, projection

    def build(self, num_features: int) -> None:
        """Build the projector: two hidden layers with batch normalization."""
        self.projector = build_projector([num_features, self.hidden, self.hidden, self.projection], bias=False)

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss over the examples of all processes."""
        z_a, z_b = (all_gather_cat(z) for z in step.outputs)
        invariance = F.mse_loss(z_a, z_b)
        variance = (_deviation_hinge(z_a) + _deviation_hinge(z_b)) / 2
        covariance = _squared_covariances(z_a) + _squared_covariances(z_b)
        loss = self.invariance * invariance + self.variance * variance + self.covariance * covariance
        return ObjectiveOutput(loss, {"invariance": invariance, "variance": variance, "covariance": covariance})


def _deviation_hinge(z: Tensor) -> Tensor:
    return F.relu(1 - (z.var(0) + _EPSILON).sqrt()).mean()


def _squared_covariances(z: Tensor) -> Tensor:
    centered = z - z.mean(0)
    covariance = centered.T @ centered / (len(z) - 1)
    # Less memory than a mask: the sum of all squares without those of the diagonal.
    return (covariance.square().sum() - torch.diagonal(covariance).square().sum()) / z.shape[1]
