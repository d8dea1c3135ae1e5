"""SSDLite (Liu et al. 2016; Sandler et al. 2018, section 6.2), of torchvision's parts: small and quick.

The two coarsest maps of the encoder and smaller ones on top classify default boxes by separable convolutions, without a
pyramid. Group normalization takes the place of batch normalization, which small batches give poor statistics.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import box_iou
from torchvision.ops.misc import Conv2dNormActivation

from sft_lightning.detection.base import Boxes, list_images
from sft_lightning.detection.dense import DenseHead, Width, divide_by_all
from sft_lightning.detection.pyramid import choose_maps, choose_width, group_norm
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError

_COARSER = 4  # most maps on top of the encoder's


class SSDLite(DenseHead):
    """Maps of falling size with a small head each."""

    first_class: ClassVar[int] = 1

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        width: int | None = None,
        anchor_scale: float | None = None,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
    ) -> None:
        """Build the layers.

        Args:
            encoder: Encoder, which gives its two coarsest maps from now on.
            num_classes: Number of classes, without background.
            width: Channels of the maps on top, the first of which has twice as many; None for half of those of the
                coarsest map.
            anchor_scale: None: default boxes are shares of the image, from 0.2 to 0.95.
            score_threshold: Smallest score of a detection.
            nms_threshold: Largest intersection over union of two detections of a class.
            max_detections: Most detections of an image.

        Raises:
            InputError: The encoder gives no maps, or a setting is out of its range.
        """
        super().__init__()
        if anchor_scale is not None:
            raise InputError(
                f"anchor_scale is {anchor_scale}, and the boxes of ssdlite are shares of the image: leave it out"
            )
        self.num_classes, side = num_classes, encoder.input_spec.shape[-1]
        strides, channels = choose_maps(encoder, 4, most=2)
        width = choose_width(channels, width)
        coarser = min(_COARSER, math.ceil(math.log2(max(1, side // strides[-1]))))
        widths = [2 * width, width, width, width // 2][:coarser]
        self.pyramid = _Coarser(channels[-1], widths)
        maps = [*channels, *widths]
        boxes = DefaultBoxGenerator([[2, 3]] * len(maps), min_ratio=0.2, max_ratio=0.95)
        self.detector = SSD(
            Width(maps),
            boxes,
            (side, side),
            num_classes + 1,
            head=SSDLiteHead(maps, boxes.num_anchors_per_location(), num_classes + 1, group_norm),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )

    @property
    def class_layers(self) -> Mapping[str, int]:
        """The layer of each map that classifies its boxes."""
        place = "detector.head.classification_head.module_list"
        return {f"{place}.{i}.1": 1 for i in range(len(self.detector.head.classification_head.module_list))}

    def compare(
        self, targets: list[Boxes], outputs: dict[str, Tensor], anchors: list[Tensor], places: list[int]
    ) -> dict[str, Tensor]:
        """Compute torchvision's losses, with each object matched to the default boxes that overlap it."""
        matched = [
            self.detector.proposal_matcher(box_iou(target["boxes"], own))
            if len(target["boxes"])
            else torch.full((len(own),), -1, dtype=torch.int64, device=own.device)
            for own, target in zip(anchors, targets, strict=True)
        ]
        return divide_by_all(self.detector.compute_loss(targets, outputs, anchors, matched), matched)

    def find(self, maps: Sequence[Tensor], side: int) -> list[Boxes]:
        """Find objects."""
        features: list[Tensor] = self.pyramid(maps)
        images = list_images(maps, side)
        anchors = self.detector.anchor_generator(images, features)
        found: list[Boxes] = self.detector.postprocess_detections(
            self.detector.head(features), anchors, images.image_sizes
        )
        return found


class _Coarser(nn.Module):
    """Maps on top of those of an encoder, each of half the side of the one before."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _make_block(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        made = [*maps]
        for block in self.blocks:
            made.append(block(made[-1]))
        return made


def _make_block(channels: int, width: int) -> nn.Sequential:
    layer = partial(Conv2dNormActivation, norm_layer=group_norm, activation_layer=nn.ReLU6)
    half = width // 2
    return nn.Sequential(
        layer(channels, half, kernel_size=1),
        layer(half, half, stride=2, groups=half),
        layer(half, width, kernel_size=1),
    )
