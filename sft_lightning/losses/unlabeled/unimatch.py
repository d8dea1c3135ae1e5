"""UniMatch: Yang et al. 2023, "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation"."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.losses.unlabeled.base import StrategyInputs, StrategyOutput, masked_cross_entropy
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import check_fraction


class UniMatch(FixMatch):
    """FixMatch in pixels with two strong views and a third stream, whose features lose some of their channels.

    The three learn the classes of the confident pixels of one weak view: `feature_weight` is the weight of the third
    stream, lambda, and the strong views share the rest. Each strong view has colors and rectangles (CutMix) of
    its own. The third stream is the weak view, of whose maps a share of the channels is zero before the decoder.

    Reference setting: tau .95, lambda .5, half of the channels, as many examples with masks as without, CutMix in half
    of the examples. The loss of the masks and that of the others weigh alike (`lambda_u: 1`).
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "strong", "strong_2")
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)

    def __init__(
        self, threshold: float = 0.95, feature_weight: float = 0.5, dropped: float = 0.5, **consistency: Any
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, minimum probability of an accepted pseudo-label.
            feature_weight: lambda, share of the loss that the stream with fewer channels has.
            dropped: Share of the channels that are zero in that stream.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is outside [0, 1].
        """
        super().__init__(threshold, **consistency)
        check_fraction(feature_weight=feature_weight, dropped=dropped)
        self.feature_weight, self.dropped = feature_weight, dropped

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute the cross-entropy of the three streams with the classes of the weak view."""
        batch = step.unlabeled
        with torch.no_grad():
            label, accepted = self.targets(self.weak_logits(step), step)
        generator = torch.Generator().manual_seed(batch.seed)

        def keep_some(count: int, channels: int) -> Tensor:
            """Draw which channels stay, scaled so that their mean does, (count, channels)."""
            kept = torch.rand(count, channels, generator=generator) >= self.dropped
            return kept / max(1 - self.dropped, 1e-6)

        with find_backbone(step.network).scale_maps(keep_some):
            perturbed = step.network.outputs(batch.weak).logits
        streams = [(perturbed, *batch.align_pixels(label, accepted, None), self.feature_weight)]
        views = (step.student.logits, batch.cut), (step.network.outputs(batch.strong_2).logits, batch.cut_2)
        for logits, cut in views:
            streams.append((logits, *batch.align_pixels(label, accepted, cut), (1 - self.feature_weight) / 2))
        losses = [share * masked_cross_entropy(logits, y, weight) for logits, y, weight, share in streams]
        _, _, shown, _ = streams[0]
        return StrategyOutput(torch.stack(losses).sum(), label, shown)


def find_backbone(network: object) -> Encoder:
    """Return the backbone of a paradigm.

    Args:
        network: Paradigm, an `nn.Module` with a `backbone`.
    """
    assert isinstance(network, nn.Module)
    backbone = network.get_submodule("backbone")
    assert isinstance(backbone, Encoder)
    return backbone
