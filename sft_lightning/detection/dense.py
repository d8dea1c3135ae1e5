"""What detectors have in common that classify each place of the maps at once: RetinaNet, FCOS and SSDLite."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from sft_lightning.detection.base import Boxes, DetectionHead, list_images
from sft_lightning.utils.distributed import is_distributed, sum_over_ranks


class Width(nn.Module):
    """What torchvision's detectors want to know of a backbone, which they do not get here."""

    def __init__(self, out_channels: int | list[int]) -> None:
        """Keep the number of channels.

        Args:
            out_channels: Channels of the maps.
        """
        super().__init__()
        self.out_channels = out_channels


class DenseHead(DetectionHead):
    """Pyramid and torchvision's detector without its backbone.

    Attributes:
        pyramid: Layers between the maps of the encoder and those of the detector.
        detector: torchvision's detector, of which head, anchors, losses and the choice of boxes are used.
    """

    names: ClassVar[dict[str, str]] = {
        "classification": "class_loss",
        "bbox_regression": "box_loss",
        "bbox_ctrness": "centerness_loss",
    }
    pyramid: nn.Module
    detector: Any

    @property
    def class_layers(self) -> Mapping[str, int]:
        """The layer that classifies places."""
        return {"detector.head.classification_head.cls_logits": 1}

    def losses(self, maps: Sequence[Tensor], side: int, targets: list[Boxes]) -> dict[str, Tensor]:
        """Compute the losses of the classes and boxes of all places."""
        features: list[Tensor] = self.pyramid(maps)
        outputs = self.detector.head(features)
        anchors = self.detector.anchor_generator(list_images(maps, side), features)
        places = [x.shape[-2] * x.shape[-1] for x in features]
        found = self.compare(targets, outputs, anchors, places)
        return {self.names[name]: loss for name, loss in found.items()}

    def compare(
        self, targets: list[Boxes], outputs: dict[str, Tensor], anchors: list[Tensor], places: list[int]
    ) -> dict[str, Tensor]:
        """Compute torchvision's losses.

        Args:
            targets: Boxes and labels of each image.
            outputs: Outputs of the head for all places, (B, N, ...) each.
            anchors: Anchors of each image, (N, 4).
            places: Number of places of each map.
        """
        found: dict[str, Tensor] = self.detector.compute_loss(targets, outputs, anchors)
        return found

    def find(self, maps: Sequence[Tensor], side: int) -> list[Boxes]:
        """Find objects."""
        features: list[Tensor] = self.pyramid(maps)
        outputs = self.detector.head(features)
        images = list_images(maps, side)
        anchors = self.detector.anchor_generator(images, features)
        each = anchors[0].shape[0] // sum(x.shape[-2] * x.shape[-1] for x in features)
        sizes = [each * x.shape[-2] * x.shape[-1] for x in features]
        by_level = {name: list(value.split(sizes, dim=1)) for name, value in outputs.items()}
        anchors_by_level = [list(one.split(sizes)) for one in anchors]
        found: list[Boxes] = self.detector.postprocess_detections(by_level, anchors_by_level, images.image_sizes)
        return found


def divide_by_all(losses: dict[str, Tensor], matched: Sequence[Tensor]) -> dict[str, Tensor]:
    """Divide losses by the matched places of all processes in place of those of one, as FCOS does (Tian et al. 2019).

    DDP takes the mean of the gradients of the processes, so that two of them learn what one does with their batches
    together, however many objects each has.

    Args:
        losses: Sums over the places of a batch, divided by the number of those that are matched, at least 1.
        matched: Object of each place of each image, negative where it has none.
    """
    if not is_distributed():
        return losses
    own = torch.stack([(one >= 0).sum() for one in matched]).sum().to(torch.float32)
    every, world = sum_over_ranks(own).clamp_min(1), distributed.get_world_size()
    return {name: loss * own.clamp_min(1).to(loss) * world / every.to(loss) for name, loss in losses.items()}
