"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection"), of torchvision's parts.

Every place of every map classifies and corrects nine anchors; the focal loss keeps the easy ones from outweighing the
rest. Group normalization in the head, as in torchvision's second version.
"""

from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from sft_lightning.detection.dense import DenseHead, Width
from sft_lightning.detection.pyramid import (
    Pyramid,
    choose_anchor_scale,
    choose_maps,
    choose_width,
    count_coarser,
    group_norm,
)
from sft_lightning.networks.encoder import Encoder

_RATIOS = (0.5, 1.0, 2.0)


class Retina(DenseHead):
    """Pyramid from stride 8 to 128, and one head for all of its maps."""

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
            encoder: Encoder, which gives its maps from stride 8 on from now on.
            num_classes: Number of classes, without background.
            width: Channels of the pyramid; None for half of those of the coarsest map.
            anchor_scale: Side of the smallest anchors of each map as a multiple of its stride; None for up to 4.
            score_threshold: Smallest score of a detection.
            nms_threshold: Largest intersection over union of two detections of a class.
            max_detections: Most detections of an image.

        Raises:
            InputError: The encoder gives no maps, or a setting is out of its range.
        """
        super().__init__()
        self.num_classes, side = num_classes, encoder.input_spec.shape[-1]
        strides, channels = choose_maps(encoder, 8)
        width = choose_width(channels, width)
        coarser = count_coarser(strides, 128, side)
        self.pyramid = Pyramid(channels, width, coarser)
        levels = [*strides, *(strides[-1] * 2 ** (k + 1) for k in range(coarser))]
        scale = choose_anchor_scale(anchor_scale, 4.0, levels[-1], side)
        sizes = tuple(tuple(scale * stride * 2 ** (k / 3) for k in range(3)) for stride in levels)
        self.detector = RetinaNet(
            Width(width),
            num_classes,
            anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * len(levels)),
            head=RetinaNetHead(width, 3 * len(_RATIOS), num_classes, group_norm),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )
