"""FCOS (Tian et al. 2019, "Fully Convolutional One-Stage Object Detection"), of torchvision's parts.

Every place near the center of an object predicts its distances to the four sides, without anchors.
"""

from typing import ClassVar

from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead

from sft_lightning.detection.base import Boxes
from sft_lightning.detection.dense import DenseHead, Width, divide_by_all
from sft_lightning.detection.pyramid import Pyramid, choose_maps, choose_width, count_coarser, group_norm
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError


class FCOS(DenseHead):
    """Pyramid from stride 8 to 128, and one head for all of its maps."""

    box_losses: ClassVar[tuple[str, ...]] = ("box_loss", "centerness_loss")

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        width: int | None = None,
        anchor_scale: float | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        """Build the layers.

        Args:
            encoder: Encoder, which gives its maps from stride 8 on from now on.
            num_classes: Number of classes.
            width: Channels of the pyramid; None for half of those of the coarsest map.
            anchor_scale: None, since this detector has no anchors.
            score_threshold: Smallest score of a detection.
            nms_threshold: Largest intersection over union of two detections of a class.
            max_detections: Most detections of an image.

        Raises:
            InputError: The encoder gives no maps, or a setting is out of its range.
        """
        super().__init__()
        if anchor_scale is not None:
            raise InputError(f"anchor_scale is {anchor_scale}, and fcos has no anchors: leave it out")
        self.num_classes, side = num_classes, encoder.input_spec.shape[-1]
        strides, channels = choose_maps(encoder, 8)
        width = choose_width(channels, width)
        coarser = count_coarser(strides, 128, side)
        self.pyramid = Pyramid(channels, width, coarser)
        levels = [*strides, *(strides[-1] * 2 ** (k + 1) for k in range(coarser))]
        places = AnchorGenerator(tuple((stride,) for stride in levels), ((1.0,),) * len(levels))
        head = _Head(width, 1, num_classes)
        head.classification_head = FCOSClassificationHead(width, 1, num_classes, norm_layer=group_norm)
        head.regression_head = FCOSRegressionHead(width, 1, norm_layer=group_norm)
        self.detector = detection.FCOS(
            Width(width),
            num_classes,
            anchor_generator=places,
            head=head,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )

    def compare(
        self, targets: list[Boxes], outputs: dict[str, Tensor], anchors: list[Tensor], places: list[int]
    ) -> dict[str, Tensor]:
        """Compute torchvision's losses, for which each map has objects of its own sizes."""
        found: dict[str, Tensor] = self.detector.compute_loss(targets, outputs, anchors, places)
        return found


class _Head(FCOSHead):  # type: ignore[misc] # untyped
    """torchvision's head, with losses that are divided by the matched places of all processes."""

    def compute_loss(
        self,
        targets: list[Boxes],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Compute torchvision's losses of places that are matched with objects."""
        return divide_by_all(super().compute_loss(targets, head_outputs, anchors, matched_idxs), matched_idxs)
