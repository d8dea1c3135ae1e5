"""Reconstruction as L_u: the features shall still hold the picture."""

from sft_lightning.losses.reconstruction import reconstruction_loss
from sft_lightning.losses.unlabeled.base import Strategy, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.networks.vision.autoencoders import ConvDecoder


class Reconstruction(Strategy):
    """A decoder of its own draws the picture from the features: ||x - dec(f(x))||^2, mean over pixels and batch.

    Class logits hold no picture, so the decoder starts at the features. Works on pixels, of any size.
    """

    def build(self, about: StrategyContext) -> None:
        """The decoder.

        Args:
            about: Sizes.
        """
        self.decoder = ConvDecoder(about.image_shape, about.num_features)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Mean squared error."""
        return StrategyOutput(reconstruction_loss(self.decoder(step.student.features), step.unlabeled.weak))
