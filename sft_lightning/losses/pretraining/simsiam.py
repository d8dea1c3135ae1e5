"""SimSiam: Chen & He 2021, "Exploring Simple Siamese Representation Learning"."""

from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.errors import check_min


class SimSiam(ViewObjective):
    """Prediction of the network's own projection of the other view, which gets no gradient: - cos (eq. 4).

    It needs no negatives and no momentum network.

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): projection 2048 - 2048 - 2048,
    predictor 512 - 2048, SGD with rate .5 and weight decay 1e-5; linear accuracy 90.5.
    """

    def __init__(self, hidden: int = 2048, projection: int = 2048, bottleneck: int = 512) -> None:
        """Check and store the settings.

        Args:
            hidden: Number of outputs of the projector's two hidden layers.
            projection: Number of outputs of projector and predictor.
            bottleneck: Number of outputs of the predictor's hidden layer.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(1, hidden=hidden, projection=projection, bottleneck=bottleneck)
        self.hidden, self.projection, self.bottleneck = hidden, projection, bottleneck

    def build(self, num_features: int) -> None:
        """Build the projector, two hidden layers with batch normalization, and the predictor, one hidden layer."""
        sizes = [num_features, self.hidden, self.hidden, self.projection]
        self.projector = build_projector(sizes, output_norm="plain")
        self.predictor = build_projector([self.projection, self.bottleneck, self.projection])

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss, a mean over examples."""
        (p_a, p_b), (z_a, z_b) = step.outputs, step.targets
        return ObjectiveOutput(-(F.cosine_similarity(p_a, z_b).mean() + F.cosine_similarity(p_b, z_a).mean()) / 2)
