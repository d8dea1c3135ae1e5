"""The task of a kind of target."""

from collections.abc import Mapping
from typing import get_args

from torch import Tensor, nn

from sft_lightning.tasks.base import Task
from sft_lightning.tasks.classification import Classification
from sft_lightning.tasks.multi_label import MultiLabel, MultiLabelLoss
from sft_lightning.tasks.segmentation import Segmentation, SegmentationLoss
from sft_lightning.utils.errors import InputError


def rebuild_head(target: str, tensors: Mapping[str, Tensor]) -> nn.Linear:
    """Rebuild the head of a task, for use without training.

    Args:
        target: Kind of target, as for `make_task`.
        tensors: `weight` (C, F) and `bias` (C,).
    """
    num_classes, num_features = tensors["weight"].shape
    head = make_task(target, num_classes).build_head(num_features)
    head.load_state_dict(dict(tensors))
    return head.requires_grad_(False)


def make_task(
    target: str,
    num_classes: int,
    label_smoothing: float = 0.0,
    multi_label_loss: MultiLabelLoss = "binary_cross_entropy",
    segmentation_loss: SegmentationLoss = "cross_entropy",
) -> Task:
    """Make the task of a kind of target.

    Args:
        target: `class` for one class of several, `class_set` for any of them, or `mask` for one of each pixel.
        num_classes: Number of classes.
        label_smoothing: Share of the target spread over other classes.
        multi_label_loss: Loss of examples with several classes.
        segmentation_loss: Loss of pixels.

    Raises:
        InputError: A setting is out of its range, or does not go with the target.
    """
    if multi_label_loss not in get_args(MultiLabelLoss):
        raise InputError(f"multi_label_loss is {multi_label_loss!r}: give {' or '.join(get_args(MultiLabelLoss))}")
    if segmentation_loss not in get_args(SegmentationLoss):
        raise InputError(f"segmentation_loss is {segmentation_loss!r}: give {', '.join(get_args(SegmentationLoss))}")
    if target != "mask" and segmentation_loss != "cross_entropy":
        raise InputError(
            f"segmentation_loss is {segmentation_loss!r}, and the examples have no masks: leave it out, or give a "
            "SegmentationDataModule"
        )
    if target == "defect":
        raise InputError(
            "AnomalyDataModule gives labels of normal examples alone, from which no classes are learned: use "
            "AnomalyDetector, or give the source to ImageDataModule"
        )
    if target == "class_set":
        return MultiLabel(num_classes, label_smoothing, multi_label_loss)
    if target not in ("class", "mask"):
        raise InputError(
            f"target is {target!r}: give class, or class_set where examples have several classes, or mask where each "
            "pixel has one"
        )
    if target == "mask" and multi_label_loss == "binary_cross_entropy":
        return Segmentation(num_classes, label_smoothing, segmentation_loss)
    if multi_label_loss != "binary_cross_entropy":
        raise InputError(
            f"multi_label_loss is {multi_label_loss!r}, and each example has one class: leave it out, or give the data "
            "a label_separator"
        )
    return Classification(num_classes, label_smoothing)
