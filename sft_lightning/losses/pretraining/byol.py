"""BYOL: Grill et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning"."""

from typing import ClassVar

from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.errors import check_decay, check_min


class BYOL(ViewObjective):
    """Prediction of the momentum network's projection of the other view: 2 - 2 cos, in both directions (eq. 2).

    It needs no negatives.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): projection 4096 - 256, predictor
    4096 - 256, decay .99 rising to 1, LARS with rate 1 and weight decay 1e-5; linear accuracy 92.6.
    """

    needs_momentum: ClassVar[bool] = True

    def __init__(self, decay: float = 0.99, hidden: int = 4096, projection: int = 256) -> None:
        """Check and store the settings.

        Args:
            decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
            hidden: Number of outputs of the hidden layers of projector and predictor.
            projection: Number of outputs of projector and predictor.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_decay(decay=decay)
        check_min(1, hidden=hidden, projection=projection)
        self.decay, self.hidden, self.projection = decay, hidden, projection

    def build(self, num_features: int) -> None:
        """Build projector and predictor: one hidden layer each, with batch normalization."""
        self.projector = build_projector([num_features, self.hidden, self.projection])
        self.predictor = build_projector([self.projection, self.hidden, self.projection])

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss, a mean over examples."""
        (q_a, q_b), (k_a, k_b) = step.outputs, step.targets
        cosine = F.cosine_similarity(q_a, k_b).mean() + F.cosine_similarity(q_b, k_a).mean()
        return ObjectiveOutput(4 - 2 * cosine)
