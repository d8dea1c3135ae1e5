"""Reconstruction as L_u: a decoder rebuilds the image from the features."""

from typing import ClassVar

from sft_lightning.losses.reconstruction import reconstruction_loss
from sft_lightning.losses.unlabeled.base import Strategy, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.networks.vision.autoencoders import ConvDecoder


class Reconstruction(Strategy):
    """Squared error ||x - dec(f(x))||^2, averaged over pixels and batch.

    Class logits cannot be decoded into an image, so the strategy owns a decoder that starts from the features. It works
    on images of any size.

    Reference setting: ResNet-50 from published weights, Adam with rate 1e-4, `schedule: alternating`.
    """

    modalities: ClassVar[tuple[str, ...] | None] = ("image",)

    def build(self, context: StrategyContext) -> None:
        """Build the decoder.

        Args:
            context: Numbers of classes and features, shape of the images.
        """
        self.decoder = ConvDecoder(context.image_shape, context.num_features)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the mean squared error of the decoded image."""
        return StrategyOutput(reconstruction_loss(self.decoder(step.student.features), step.unlabeled.weak))
