"""Interface of detectors: what stands between the maps of an encoder and boxes with classes and scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from sft_lightning.data.vision.boxes import PADDING

Boxes = dict[str, Tensor]  # of one image, as torchvision names them: boxes, labels and perhaps scores


class Detections(NamedTuple):
    """Detected objects of a batch, those of each image by falling score.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the images, (B, K, 4).
        scores: Scores from 0 to 1, (B, K); 0 in rows that fill up.
        classes: Classes, int64, (B, K); -1 in rows that fill up.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class DetectionHead(nn.Module, ABC):
    """Detector without its encoder.

    Attributes:
        num_classes: Number of classes, without background.
        first_class: Number that torchvision gives class 0: 1 where 0 is the background.
        box_losses: Names of those losses that need exact boxes.
    """

    first_class: ClassVar[int] = 0
    box_losses: ClassVar[tuple[str, ...]] = ("box_loss",)
    num_classes: int

    @abstractmethod
    def losses(self, maps: Sequence[Tensor], side: int, targets: list[Boxes]) -> dict[str, Tensor]:
        """Compute the parts of the loss, scalars by name.

        Args:
            maps: Maps of the encoder, the finest first, (B, C, h, w) each.
            side: Side of the images in pixels.
            targets: Boxes of each image from `split_targets`.
        """

    @abstractmethod
    def find(self, maps: Sequence[Tensor], side: int) -> list[Boxes]:
        """Find objects.

        Args:
            maps: Maps of the encoder, the finest first, (B, C, h, w) each.
            side: Side of the images in pixels.

        Returns:
            Boxes, labels and scores of each image, by falling score.
        """

    @property
    @abstractmethod
    def class_layers(self) -> Mapping[str, int]:
        """Names of the layers with rows of classes, each with the number of rows that a class has side by side.

        Rows are ordered by anchor, class (after the background, if `first_class` is 1) and these numbers.
        """

    def compute_losses(self, maps: Sequence[Tensor], side: int, y: Tensor) -> dict[str, Tensor]:
        """Compute the parts of the loss, scalars by name.

        Args:
            maps: Maps of the encoder, the finest first, (B, C, h, w) each.
            side: Side of the images in pixels.
            y: Targets, (B, M, 6), as in `sft_lightning.data.vision.boxes`.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            return self.losses(_at_least_float32(maps), side, split_targets(y, self.first_class))

    def detect(self, maps: Sequence[Tensor], side: int) -> Detections:
        """Find objects.

        Args:
            maps: Maps of the encoder, the finest first, (B, C, h, w) each.
            side: Side of the images in pixels.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            return pad_detections(self.find(_at_least_float32(maps), side), self.first_class)


def split_targets(y: Tensor, first_class: int) -> list[Boxes]:
    """Return the boxes to learn of each image; those that evaluation ignores are left out.

    Args:
        y: Targets, (B, M, 6), as in `sft_lightning.data.vision.boxes`.
        first_class: Number of class 0 in the labels.
    """
    kept = (y[..., 0] >= 0) & (y[..., 5] == 0)
    return [
        {"boxes": rows[is_kept, 1:5], "labels": rows[is_kept, 0].long() + first_class}
        for rows, is_kept in zip(y, kept, strict=True)
    ]


def pad_detections(found: Sequence[Boxes], first_class: int) -> Detections:
    """Join the detections of a batch.

    Args:
        found: Boxes, labels and scores of each image.
        first_class: Number of class 0 in the labels.
    """
    most = max(len(one["scores"]) for one in found)
    boxes = found[0]["boxes"].new_zeros(len(found), most, 4)
    scores = found[0]["scores"].new_zeros(len(found), most)
    classes = found[0]["labels"].new_full((len(found), most), int(PADDING))
    for i, one in enumerate(found):
        count = len(one["scores"])
        boxes[i, :count], scores[i, :count] = one["boxes"], one["scores"]
        classes[i, :count] = one["labels"] - first_class
    return Detections(boxes, scores, classes)


def make_targets(found: Detections, is_kept: Tensor) -> Tensor:
    """Return detections as targets, (B, K, 6), as in `sft_lightning.data.vision.boxes`.

    Args:
        found: Detections.
        is_kept: Which of them count, boolean, (B, K); the rows of others are padding.
    """
    classes = torch.where(is_kept, found.classes, int(PADDING))[..., None].to(found.boxes)
    return torch.cat([classes, found.boxes, torch.zeros_like(classes)], 2)


def list_images(maps: Sequence[Tensor], side: int) -> ImageList:
    """Return what torchvision wants to know of the images: their sizes, and a tensor of their shape.

    Args:
        maps: Maps of the encoder.
        side: Side of the images in pixels.
    """
    count = len(maps[0])
    return ImageList(maps[0].new_empty(0, 3, side, side), [(side, side)] * count)


def _at_least_float32(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps of which boxes can be computed: half precision is too coarse for corners."""
    return [x.float() if x.dtype.itemsize < 4 else x for x in maps]
