"""Detectors by name."""

from typing import Literal, get_args

from sft_lightning.detection.base import DetectionHead
from sft_lightning.detection.faster_rcnn import FasterRCNN
from sft_lightning.detection.fcos import FCOS
from sft_lightning.detection.retinanet import Retina
from sft_lightning.detection.ssdlite import SSDLite
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError, check_fraction, check_min, did_you_mean

Kind = Literal["faster_rcnn", "retinanet", "fcos", "ssdlite"]
_KINDS: dict[str, type[FasterRCNN] | type[Retina] | type[FCOS] | type[SSDLite]] = {
    "faster_rcnn": FasterRCNN,
    "retinanet": Retina,
    "fcos": FCOS,
    "ssdlite": SSDLite,
}


def build_detector(
    kind: str,
    encoder: Encoder,
    num_classes: int,
    width: int | None = None,
    anchor_scale: float | None = None,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    max_detections: int = 100,
) -> DetectionHead:
    """Build a detector on an encoder, which from now on gives the maps that it takes.

    Args:
        kind: `faster_rcnn`, `retinanet`, `fcos` or `ssdlite`.
        encoder: Encoder of square images; layers after its last map are dropped.
        num_classes: Number of classes, without background.
        width: Channels of the pyramid, a multiple of 32; None for half of those of the coarsest map.
        anchor_scale: Side of the smallest anchors of each map as a multiple of its stride; None to choose it by the
            size of the images.
        score_threshold: Smallest score of a detection; None for that of the kind.
        nms_threshold: Largest intersection over union of two detections of a class; None for that of the kind.
        max_detections: Most detections of an image.

    Raises:
        InputError: The kind is unknown, a setting is out of its range, or the encoder gives no maps.
    """
    if kind not in _KINDS:
        raise InputError(f"detector is {kind!r}{did_you_mean(kind, [*_KINDS])}: give {', '.join(get_args(Kind))}")
    check_min(1, num_classes=num_classes, max_detections=max_detections)
    given = {"score_threshold": score_threshold, "nms_threshold": nms_threshold}
    thresholds = {name: value for name, value in given.items() if value is not None}
    check_fraction(**thresholds)
    shape = encoder.input_spec.shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"input_spec is {encoder.input_spec}, and detectors take square images: give (C, S, S)")
    return _KINDS[kind](encoder, num_classes, width, anchor_scale, max_detections=max_detections, **thresholds)
