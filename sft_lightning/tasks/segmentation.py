"""Semantic segmentation: one class of several for each pixel."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.tasks.base import Task
from sft_lightning.tasks.segmentation_metrics import IOU, SegmentationMetrics, average_iou, count_by_example
from sft_lightning.utils.distributed import is_distributed, sum_over_ranks
from sft_lightning.utils.errors import InputError, check_decay

SegmentationLoss = Literal["cross_entropy", "dice", "cross_entropy_and_dice"]
_STRIDE = 4  # of the map of features
_SMOOTH = 1.0  # pixels that are added to both parts of Dice's fraction


class PixelHead(nn.Linear):
    """Linear layer of each pixel, which is a convolution of side 1, and bilinear enlargement to the image's size.

    Its weight has the shape of a classifier's, (C, F), so that heads of runs are matched by the names of classes.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits of all pixels.

        Args:
            features: Features of every fourth pixel, (B, F, H / 4, W / 4).

        Returns:
            Logits, (B, C, H, W).
        """
        return _enlarge(F.conv2d(features, self.weight[:, :, None, None], self.bias))


def _enlarge(small: Tensor) -> Tensor:
    """Enlarge a map of every fourth pixel to all pixels."""
    return F.interpolate(small, scale_factor=_STRIDE, mode="bilinear", align_corners=False)


class Segmentation(Task):
    """One class of several for each pixel.

    Targets are classes, int64, (B, H, W), or -1 where a pixel is not counted; outputs are logits, (B, C, H, W).
    """

    name: ClassVar[str] = "segmentation"
    monitor: ClassVar[tuple[str, str]] = ("val/mean_iou", "max")
    target: ClassVar[str] = "mask"
    is_dense: ClassVar[bool] = True
    metric_titles: ClassVar[dict[str, str]] = {
        "mean_iou": "mean IoU",
        "mean_dice": "mean Dice",
        "boundary_f1": "boundary F1",
        "pixel_accuracy": "accuracy of pixels",
        "calibration_error": "expected calibration error of pixels (15 bins)",
        "loss": "cross-entropy of pixels",
    }
    hub_task: ClassVar[str | None] = "image-segmentation"
    hub_metrics: ClassVar[tuple[tuple[str, str, str], ...]] = (("mean_iou", "mean_iou", "Mean IoU"),)
    example_metric: ClassVar[tuple[str, str]] = ("image_iou", "mean IoU of an image")
    judged_metric: ClassVar[tuple[str, str]] = example_metric
    explained_class: ClassVar[str] = "its most common class"
    uneven_advice: ClassVar[str] = "`class_weights: balanced` weighs pixels of rare classes more"
    score_sentence: ClassVar[str] = "has a mean IoU of an image of {score} on {examples}"
    test_sentence: ClassVar[str] = "its mean IoU of an image is {score}"
    uncertainty_note: ClassVar[str] = "the mean entropy of the pixels, 1 where all classes are equally likely"

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.0, loss: SegmentationLoss = "cross_entropy"
    ) -> None:
        """Keep the settings.

        Args:
            num_classes: Number of classes C.
            label_smoothing: Share of the target spread over all classes, in the cross-entropy.
            loss: `cross_entropy`, `dice` (Milletari et al. 2016, of the classes that an image has), or their sum.

        Raises:
            InputError: A setting is out of its range.
        """
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}: segmentation needs masks of at least 2 classes")
        check_decay(label_smoothing=label_smoothing)
        if loss == "dice" and label_smoothing:
            raise InputError(f"label_smoothing is {label_smoothing}, which the Dice loss does not have: leave it out")
        self.num_classes, self.label_smoothing, self.kind = num_classes, label_smoothing, loss

    def build_head(self, num_features: int) -> PixelHead:
        """Build the layer from maps, (B, F, H / 4, W / 4), to logits, (B, C, H, W)."""
        return PixelHead(num_features, self.num_classes)

    def apply_classifier(self, classifier: nn.Module, features: Tensor) -> Tensor:
        """Apply a classifier of vectors to each pixel of a map, (B, F, H / 4, W / 4), and enlarge, (B, C, H, W)."""
        rows = features.movedim(1, -1)
        logits: Tensor = classifier(rows.flatten(0, -2))
        return _enlarge(logits.unflatten(0, rows.shape[:-1]).movedim(-1, 1))

    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss of all counted pixels, weighted by class; 0 where there are none.

        The cross-entropy is averaged over the counted pixels of all processes, so that two of them learn what one does.
        """
        parts = [] if self.kind == "dice" else [self._cross_entropy(outputs, target, weight)]
        if self.kind != "cross_entropy":
            parts.append(self._dice(outputs, target, weight))
        return torch.stack(parts).sum()

    def _cross_entropy(self, outputs: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        each = F.cross_entropy(outputs, target, reduction="none", ignore_index=-1, label_smoothing=self.label_smoothing)
        counted = target >= 0
        counts = counted.to(each) if weight is None else weight.to(each)[target.clamp_min(0)] * counted
        total = counts.detach().sum()
        if is_distributed():  # gradients of the processes are averaged, so the mean of the totals is due
            total = sum_over_ranks(total) / torch.distributed.get_world_size()
        return (each * counts).sum() / total.clamp_min(torch.finfo(each.dtype).tiny)

    def _dice(self, outputs: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Compute 1 - Dice of the classes that each image has, averaged over these and over the images."""
        p = outputs.float().softmax(1)
        counted = (target >= 0)[:, None]
        wanted = F.one_hot(target.clamp_min(0), self.num_classes).movedim(-1, 1).to(p) * counted
        shared, sizes = (p * wanted).sum((2, 3)), (p * counted).sum((2, 3)) + wanted.sum((2, 3))
        missed = 1 - (2 * shared + _SMOOTH) / (sizes + _SMOOTH)
        present = (wanted.sum((2, 3)) > 0).to(p)
        present = present if weight is None else present * weight.to(p)
        return ((missed * present).sum(1) / present.sum(1).clamp_min(torch.finfo(p.dtype).tiny)).mean()

    def build_metrics(self) -> SegmentationMetrics:
        """Build loss, intersection over union, also by class, Dice, boundary F1, accuracy and calibration of pixels."""
        return SegmentationMetrics(self.num_classes)

    def name_metrics(self, values: dict[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
        """Name the intersections over union of single classes after them."""
        return {
            f"{IOU}{class_names[int(name.removeprefix(IOU))]}" if name.startswith(IOU) else name: value
            for name, value in values.items()
        }

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class of each pixel, (B, C, H, W)."""
        return outputs.softmax(1)

    def is_right(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return whether all counted pixels of each image are predicted correctly, boolean, (B,)."""
        return ((outputs.argmax(1) == target) | (target < 0)).flatten(1).all(1)

    def is_known(self, target: Tensor) -> Tensor:
        """Return which images have a counted pixel, boolean, (B,)."""
        return (target >= 0).flatten(1).any(1)

    def decide(self, outputs: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return the most probable class of each pixel, int64, (B, H, W)."""
        return outputs.argmax(1)

    def agrees(self, outputs: Tensor, expected: Tensor, tolerance: Tensor) -> Tensor:
        """Return whether the class of each pixel is the most probable one of both, or is within the tolerance of it."""
        chosen = outputs.argmax(1, keepdim=True)
        missing = expected.amax(1, keepdim=True) - expected.gather(1, chosen)
        return (missing <= tolerance.expand_as(expected).gather(1, chosen))[:, 0]

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the counted pixels of each image, (B,)."""
        each = F.cross_entropy(outputs, target, reduction="none", ignore_index=-1)
        return each.flatten(1).sum(1) / (target >= 0).flatten(1).sum(1).clamp_min(1)

    def example_scores(self, outputs: Tensor, target: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return the intersection over union of each image, averaged over the classes it has or gets, (B,)."""
        return average_iou(count_by_example(outputs.argmax(1), target, self.num_classes)).float()

    def judge(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the scores, since hardly any image is right as a whole, (B,)."""
        return self.example_scores(outputs, target)

    def uncertainty(self, outputs: Tensor) -> Tensor:
        """Return the mean entropy of the pixels, 1 where all classes are equally likely, float64, (B,)."""
        p = outputs.double().softmax(1)
        each = -(p * p.clamp_min(1e-12).log()).sum(1) / math.log(self.num_classes)
        return each.flatten(1).mean(1)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return the mean of the largest probability of each pixel, (B,)."""
        return outputs.softmax(1).amax(1).flatten(1).mean(1)

    def describe_mistake(self, probabilities: Tensor, decided: Tensor, target: Tensor, names: Sequence[str]) -> str:
        """Return the share of counted pixels that are wrong, and the most common confusion."""
        counted = target >= 0
        wrong = counted & (decided != target)
        share = int(wrong.sum()) / max(1, int(counted.sum()))
        if not bool(wrong.any()):
            return "all pixels right"
        pairs = target[wrong] * len(names) + decided[wrong]
        most = int(pairs.bincount().argmax())
        return f"{share:.0%} of the pixels wrong, mostly {names[most // len(names)]} as {names[most % len(names)]}"

    def format_code(self, description: str | None) -> list[str]:
        """Return the mask, as large as what the program sees, and the share of pixels of each class."""
        kind = "np.uint8" if self.num_classes <= 256 else "np.uint16"
        lines = [
            f"mask = logits[0].argmax(0).astype({kind})",
            'Image.fromarray(mask).save("mask.png")  # numbers of classes, of the size that the program sees',
            "classes, counts = np.unique(mask, return_counts=True)",
        ]
        if description is None:
            return [*lines, "print(dict(zip(classes.tolist(), (counts / counts.sum()).tolist())))"]
        lines.append(f'names = json.load(open("{description}", encoding="utf-8"))["class_names"]')
        return [*lines, "print({names[k]: n / mask.size for k, n in zip(classes.tolist(), counts.tolist())})"]

    def describe_aim(self) -> str:
        """Return what a network of masks is for."""
        return f"tell {self.num_classes} classes of pixels apart"

    def explain_limit(self) -> str:
        """Return what happens to pixels of another class."""
        return (
            f"It knows {self.num_classes} classes and no other: each pixel is given one of them, also where it shows "
            "something else."
        )

    def measure_calibrated(self, outputs: Tensor, target: Tensor, thresholds: Tensor) -> dict[str, float]:
        """Return nothing: a temperature changes no class of a pixel."""
        return {}
