"""MoCo v3: Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers"."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_decay, check_min, check_positive


class MoCoV3(ViewObjective):
    """Cross-entropy of finding the momentum network's projection of the other view among those of the batch (alg. 1).

    The examples of all processes are negatives of each other.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): temperature .2, projection
    4096 - 256, predictor 4096 - 256, decay .99 rising to 1, LARS with rate .3 and weight decay 1e-6; linear accuracy
    93.1.
    """

    needs_momentum: ClassVar[bool] = True

    def __init__(
        self, temperature: float = 0.2, decay: float = 0.99, hidden: int = 4096, projection: int = 256
    ) -> None:
        """Check and store the settings.

        Args:
            temperature: Temperature tau of the cosine similarities.
            decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
            hidden: Number of outputs of the hidden layers of projector and predictor.
            projection: Number of outputs of projector and predictor.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(temperature=temperature)
        check_decay(decay=decay)
        check_min(1, hidden=hidden, projection=projection)
        self.temperature, self.decay, self.hidden, self.projection = temperature, decay, hidden, projection

    def build(self, num_features: int) -> None:
        """Build projector and predictor: one hidden layer each, with batch normalization, as for a ResNet."""
        sizes = [self.hidden, self.projection]
        self.projector = build_projector([num_features, *sizes], output_norm="plain")
        self.predictor = build_projector([self.projection, *sizes], bias=False)

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss over the examples of all processes."""
        (q_a, q_b), (k_a, k_b) = step.outputs, step.targets
        return ObjectiveOutput(self._contrast(q_a, k_b) + self._contrast(q_b, k_a))

    def _contrast(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = (all_gather_cat(F.normalize(x, dim=1)) for x in (q, k))
        entropy = F.cross_entropy(q @ k.T / self.temperature, torch.arange(len(q), device=q.device))
        return 2 * self.temperature * entropy
