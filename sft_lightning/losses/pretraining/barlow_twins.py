"""Barlow Twins: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"."""

import torch

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min, check_positive

_EPSILON = 1e-5  # added to each variance, as in batch normalization


class BarlowTwins(ViewObjective):
    """Distance of the cross-correlation matrix of the two views from the identity (eq. 1).

    It needs no negatives and no momentum network. Correlations are those of the examples of all processes.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): lambda 5e-3, scale .1, projection
    2048 - 2048 - 2048, LARS with rate .3 and weight decay 1e-4; linear accuracy 92.1.
    """

    def __init__(
        self, redundancy: float = 5e-3, scale: float = 0.1, hidden: int = 2048, projection: int = 2048
    ) -> None:
        """Check and store the settings.

        Args:
            redundancy: Weight lambda of the correlations between different outputs.
            scale: Factor of the loss, which matters for LARS and for weight decay.
            hidden: Number of outputs of the projector's two hidden layers.
            projection: Number of outputs of the projector.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(0, redundancy=redundancy)
        check_positive(scale=scale)
        check_min(1, hidden=hidden, projection=projection)
        self.redundancy, self.scale, self.hidden, self.projection = redundancy, scale, hidden, projection

    def build(self, num_features: int) -> None:
        """Build the projector: two hidden layers with batch normalization."""
        self.projector = build_projector([num_features, self.hidden, self.hidden, self.projection], bias=False)

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss over the examples of all processes."""
        z_a, z_b = (all_gather_cat(z) for z in step.outputs)
        z_a, z_b = ((z - z.mean(0)) / (z.var(0, correction=0) + _EPSILON).sqrt() for z in (z_a, z_b))
        correlation = z_a.T @ z_b / len(z_a)
        diagonal = torch.diagonal(correlation)
        invariance = (diagonal - 1).square().sum()
        redundancy = correlation.square().sum() - diagonal.square().sum()
        loss = self.scale * (invariance + self.redundancy * redundancy)
        return ObjectiveOutput(loss, {"invariance": invariance, "redundancy": redundancy})
