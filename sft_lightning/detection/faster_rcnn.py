"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017), of torchvision's parts.

Places that may hold an object are proposed from anchors, cut out of the maps, and then classified and corrected.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from sft_lightning.detection.base import Boxes, DetectionHead, list_images
from sft_lightning.detection.pyramid import Pyramid, choose_anchor_scale, choose_maps, choose_width, count_coarser
from sft_lightning.networks.encoder import Encoder

_RATIOS = (0.5, 1.0, 2.0)
_CUT = 7  # side of a proposal's piece of a map
_NAMES = {
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_objectness": "objectness_loss",
    "loss_rpn_box_reg": "proposal_loss",
}


class FasterRCNN(DetectionHead):
    """Pyramid, proposals, and classifier of proposals; settings as in the papers."""

    first_class: ClassVar[int] = 1
    box_losses: ClassVar[tuple[str, ...]] = ("box_loss", "proposal_loss")

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        width: int | None = None,
        anchor_scale: float | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        """Build the layers.

        Args:
            encoder: Encoder, which gives its maps of stride 4 to 32 from now on.
            num_classes: Number of classes, without background.
            width: Channels of the pyramid; None for half of those of the coarsest map.
            anchor_scale: Side of the anchors of each map as a multiple of its stride; None for up to 8.
            score_threshold: Smallest score of a detection.
            nms_threshold: Largest intersection over union of two detections of a class.
            max_detections: Most detections of an image.

        Raises:
            InputError: The encoder gives no maps, or a setting is out of its range.
        """
        super().__init__()
        self.num_classes, side = num_classes, encoder.input_spec.shape[-1]
        strides, channels = choose_maps(encoder, 4)
        width = choose_width(channels, width)
        coarser = count_coarser(strides, 64, side)
        self.pyramid = Pyramid(channels, width, coarser, is_pooled=True)
        levels = [*strides, *(strides[-1] * 2 ** (k + 1) for k in range(coarser))]
        scale = choose_anchor_scale(anchor_scale, 8.0, levels[-1], side)
        anchors = AnchorGenerator(tuple((scale * stride,) for stride in levels), (_RATIOS,) * len(levels))
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(width, len(_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi = RoIHeads(
            MultiScaleRoIAlign([str(i) for i in range(len(strides))], _CUT, 2),
            TwoMLPHead(width * _CUT**2, 4 * width),
            FastRCNNPredictor(4 * width, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )

    @property
    def class_layers(self) -> Mapping[str, int]:
        """The classifier of proposals, and their corrections, which differ by class."""
        return {"roi.box_predictor.cls_score": 1, "roi.box_predictor.bbox_pred": 4}

    def losses(self, maps: Sequence[Tensor], side: int, targets: list[Boxes]) -> dict[str, Tensor]:
        """Compute the losses of proposals and of their classes and corrections."""
        found = self._run(maps, side, targets)[1]
        return {_NAMES[name]: loss for name, loss in found.items()}

    def find(self, maps: Sequence[Tensor], side: int) -> list[Boxes]:
        """Find objects; the module is in evaluation mode."""
        return self._run(maps, side, None)[0]

    def _run(
        self, maps: Sequence[Tensor], side: int, targets: list[Boxes] | None
    ) -> tuple[list[Boxes], dict[str, Tensor]]:
        features = OrderedDict((str(i), x) for i, x in enumerate(self.pyramid(maps)))
        images = list_images(maps, side)
        proposals, proposal_losses = self.rpn(images, features, targets)
        found, losses = self.roi(features, proposals, images.image_sizes, targets)
        return found, {**losses, **proposal_losses}
