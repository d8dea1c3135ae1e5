"""SimCLR: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"."""

import torch
from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min, check_positive


class SimCLR(ViewObjective):
    """Cross-entropy of finding the other view of an example among all other views of the batch (NT-Xent, eq. 1).

    The views of all processes are negatives of each other, so the batch size of all processes together counts.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): temperature .2, projection
    2048 - 256, LARS with rate .4 and weight decay 1e-4; linear accuracy 90.7.
    """

    def __init__(self, temperature: float = 0.2, hidden: int = 2048, projection: int = 256) -> None:
        """Check and store the settings.

        Args:
            temperature: Temperature tau of the cosine similarities.
            hidden: Number of outputs of the projector's hidden layer.
            projection: Number of outputs of the projector.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(temperature=temperature)
        check_min(1, hidden=hidden, projection=projection)
        self.temperature, self.hidden, self.projection = temperature, hidden, projection

    def build(self, num_features: int) -> None:
        """Build the projector: one hidden layer, without batch normalization."""
        self.projector = build_projector([num_features, self.hidden, self.projection], hidden_norm=False)

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss over the views of all processes."""
        z_a, z_b = (all_gather_cat(F.normalize(z, dim=1)) for z in step.outputs)
        z, count = torch.cat([z_a, z_b]), len(z_a)
        itself = torch.eye(2 * count, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.temperature).masked_fill(itself, -torch.inf)
        partner = torch.arange(2 * count, device=z.device).roll(count)
        return ObjectiveOutput(F.cross_entropy(logits, partner))
