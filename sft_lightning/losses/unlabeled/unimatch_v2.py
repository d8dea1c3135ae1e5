"""UniMatch V2: Yang et al. 2024, "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation"."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sft_lightning.losses.unlabeled.base import (
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    masked_cross_entropy,
)
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.losses.unlabeled.unimatch import find_backbone
from sft_lightning.utils.inputs import concatenate_inputs


class UniMatchV2(FixMatch):
    """Two strong views, each of which sees the channels that the other one lacks, learn from the averaged network.

    The averaged network gives the classes of the weak view. Of half of the examples, a random half of the channels of
    each map is zero for one strong view before the decoder, and the other half for the other view.

    Reference setting: tau .95, decay of the average .996, DINOv2 as the backbone, as many examples with masks as
    without, CutMix in half of the examples, `lambda_u: 1`.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "strong", "strong_2")
    student: ClassVar[str | None] = None
    needs_teacher: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)

    def __init__(self, threshold: float = 0.95, **consistency: Any) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, minimum probability of an accepted pseudo-label.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: The threshold is outside [0, 1].
        """
        super().__init__(threshold, **consistency)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute the cross-entropy of both strong views with the classes that the averaged network gives."""
        batch = step.unlabeled
        label, accepted = self.targets(at_least_float32(step.network.teacher_logits(batch.weak)), step)
        count = len(label)
        generator = torch.Generator().manual_seed(batch.seed)
        whole = torch.randperm(count, generator=generator)[: count // 2]  # examples of which no channel is lost

        def divide(_: int, channels: int) -> Tensor:
            """Give each channel to one of both views at twice its size, or to both, (2 B, channels)."""
            first = 2.0 * (torch.rand(count, channels, generator=generator) < 0.5)
            first[whole] = 1.0
            return torch.cat([first, 2.0 - first])

        with find_backbone(step.network).scale_maps(divide):
            both = step.network.outputs(concatenate_inputs([batch.strong, batch.strong_2])).logits
        losses = []
        for logits, cut in zip(both.chunk(2), (batch.cut, batch.cut_2), strict=True):
            losses.append(masked_cross_entropy(logits, *batch.align_pixels(label, accepted, cut)))
        _, shown = batch.align_pixels(label, accepted, None)
        return StrategyOutput(torch.stack(losses).mean(), label, shown)
