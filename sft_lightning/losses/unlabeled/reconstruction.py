"""Reconstruction as L_u: a decoder rebuilds the inputs from the features."""

from typing import ClassVar

from sft_lightning.losses.reconstruction import reconstruction_loss
from sft_lightning.losses.unlabeled.base import Strategy, StrategyContext, StrategyInputs, StrategyOutput


class Reconstruction(Strategy):
    """Squared error ||x - dec(f(x))||^2, averaged over all numbers and the batch.

    Class logits cannot be decoded into an input, so the strategy owns a decoder that starts from the features, which
    the backbone builds.

    Reference setting: ResNet-50 from published weights, Adam with rate 1e-4, `schedule: alternating`.
    """

    needs_measured_inputs: ClassVar[bool] = True

    def build(self, context: StrategyContext) -> None:
        """Build the decoder.

        Args:
            context: Numbers of classes and features, and the backbone.

        Raises:
            InputError: The backbone has no decoder.
        """
        self.decoder = context.backbone.build_decoder()

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the mean squared error of the decoded inputs."""
        return StrategyOutput(reconstruction_loss(self.decoder(step.student.features), step.unlabeled.weak))
