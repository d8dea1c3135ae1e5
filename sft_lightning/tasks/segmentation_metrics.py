"""Metrics of segmentation, from the counts of true and predicted classes of all pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, SumMetric

from sft_lightning.tasks.boundary_f1 import BoundaryF1
from sft_lightning.tasks.classification_metrics import restart

IOU = "iou_"  # beginning of the names of metrics by class
BINS = 15  # of confidence
_DRAWS = 1000  # of the bootstrap


class PixelCounts(Metric):
    """Numbers of pixels by true and predicted class, int64, (C, C): rows are true classes."""

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes C.
        """
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: Predicted classes, int64, (B, H, W).
            target: True classes, int64, (B, H, W); -1 is not counted.
        """
        # A cell beside the table takes the pixels that are not counted: selecting the others waits for the device.
        cells = torch.where(target >= 0, target * self.num_classes + predicted, self.num_classes**2).flatten()
        added = torch.zeros(self.num_classes**2 + 1, dtype=torch.int64, device=cells.device)
        added.scatter_add_(0, cells, torch.ones_like(cells))
        self.counts += added[:-1].view_as(self.counts)

    def compute(self) -> Tensor:
        """Return the counts."""
        return self.counts


class PixelCalibration(Metric):
    """Expected calibration error of the predicted class of each pixel, in equal bins of confidence."""

    full_state_update = False
    pixels: Tensor
    right: Tensor
    confidence: Tensor

    def __init__(self) -> None:
        """Create the empty state."""
        super().__init__()
        for name, kind in (("pixels", torch.int64), ("right", torch.int64), ("confidence", torch.float32)):
            self.add_state(name, torch.zeros(BINS, dtype=kind), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, is_right: Tensor, counted: Tensor) -> None:
        """Add a batch.

        Args:
            confidence: Probability of the predicted class, (B, H, W).
            is_right: Whether that class is the true one, boolean, (B, H, W).
            counted: Whether a pixel counts, boolean, (B, H, W).
        """
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # as (0, 1/15], (1/15, 2/15], ...
        bins = torch.where(counted, bins, BINS).flatten()
        for state, values in ((self.pixels, torch.ones_like(bins)), (self.right, is_right.flatten().long())):
            state += torch.zeros(BINS + 1, dtype=torch.int64, device=bins.device).scatter_add_(0, bins, values)[:-1]
        sums = torch.zeros(BINS + 1, device=bins.device).scatter_add_(0, bins, confidence.flatten().float())
        self.confidence += sums[:-1]

    def compute(self) -> Tensor:
        """Return the mean difference between confidence and accuracy of the bins, weighted by their pixels."""
        pixels, right, confidence = (state.cpu() for state in (self.pixels, self.right, self.confidence))
        return (confidence.double() - right).abs().sum() / pixels.sum().clamp_min(1)


class SegmentationMetrics(nn.Module):
    """Loss, mean intersection over union, Dice, boundary F1, accuracy and calibration error of pixels, and by class.

    All but the boundary F1 are of the pixels of a stage together, not averages over images. Means are over the classes
    that a pixel has or is predicted to have; other classes have no value.
    """

    def __init__(self, num_classes: int) -> None:
        """Create the metrics.

        Args:
            num_classes: Number of classes C.
        """
        super().__init__()
        self.pixels, self.boundaries = PixelCounts(num_classes), BoundaryF1(num_classes)
        self.calibration = PixelCalibration()
        self.loss_sum, self.loss_count = SumMetric(), SumMetric()
        self.confusion: Tensor | None = None
        self.counted: Tensor | None = None

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: Logits, (B, C, H, W).
            target: Classes, int64, (B, H, W); -1 is not counted.
        """
        outputs = outputs.float()
        confidence, predicted = outputs.softmax(1).max(1)
        self.pixels.update(predicted, target)
        self.calibration.update(confidence, predicted == target, target >= 0)
        self.boundaries.update(predicted, target)
        self.loss_sum.update(F.cross_entropy(outputs, target, reduction="sum", ignore_index=-1))
        self.loss_count.update((target >= 0).sum())

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, store `confusion`, and reset."""
        counts = self.pixels.compute()
        loss = self.loss_sum.compute() / self.loss_count.compute().clamp_min(1)
        boundary_f1, calibration_error = self.boundaries.compute(), self.calibration.compute()
        restart(self.pixels, self.boundaries, self.calibration, self.loss_sum, self.loss_count)
        self.confusion = counts.cpu()
        table = self.confusion.double()
        right, true, predicted = table.diag(), table.sum(1), table.sum(0)
        union = true + predicted - right
        there = union > 0
        iou, dice = (right / union)[there], (2 * right / (true + predicted))[there]
        values = {
            "loss": loss,
            "mean_iou": iou.mean(),
            "mean_dice": dice.mean(),
            "boundary_f1": boundary_f1,
            "pixel_accuracy": right.sum() / table.sum(),
            "calibration_error": calibration_error,
        }
        values |= {f"{IOU}{k}": right[k] / union[k] for k in there.nonzero()[:, 0].tolist()}
        return {name: value.to(torch.float32) for name, value in values.items()}


def count_by_example(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each image by class: right ones, true ones and predicted ones, int64, (B, 3, C).

    Args:
        predicted: Predicted classes, int64, (B, H, W).
        target: True classes, int64, (B, H, W); -1 is not counted.
        num_classes: Number of classes C.
    """
    nowhere = num_classes  # takes the pixels that are not counted
    counted = target >= 0
    kinds = (torch.where(counted & (predicted == target), target, nowhere), target.where(counted, nowhere))
    tables = []
    for classes in (*kinds, predicted.where(counted, nowhere)):
        made = torch.zeros(len(target), num_classes + 1, dtype=torch.int64, device=target.device)
        flat = classes.flatten(1)
        tables.append(made.scatter_add_(1, flat, torch.ones_like(flat))[:, :-1])
    return torch.stack(tables, 1)


def average_iou(counts: Tensor) -> Tensor:
    """Return the mean intersection over union of the classes that a pixel has or is predicted to have, (...).

    Args:
        counts: Pixels that are right, true and predicted, (..., 3, C); 1 where none are counted.
    """
    right, true, predicted = counts.double().unbind(-2)
    union = true + predicted - right
    there = union > 0
    mean = (right / union.clamp_min(1) * there).sum(-1) / there.sum(-1).clamp_min(1)
    return torch.where(there.any(-1), mean, 1.0)


def bootstrap_mean_iou(counts: Tensor, seed: int = 0, groups: Sequence[str] | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the mean intersection over union, by drawing the images again (Efron 1979).

    Pixels of one image are alike, so that images are drawn and not pixels, and groups of images where there are some.

    Args:
        counts: Pixels of each image from `count_by_example`, (N, 3, C).
        seed: Seed of the draws.
        groups: Group of each image, such as its patient, or None.
    """
    if groups is not None:
        number = {name: k for k, name in enumerate(dict.fromkeys(groups))}
        unit = torch.tensor([number[name] for name in groups], device=counts.device)
        counts = counts.new_zeros(len(number), *counts.shape[1:]).index_add_(0, unit, counts)
    generator = torch.Generator().manual_seed(seed)
    count, flat = len(counts), counts.double().flatten(1)
    drawn = torch.randint(count, (_DRAWS, count), generator=generator)
    times = torch.zeros(_DRAWS, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    values = average_iou((times @ flat).view(_DRAWS, *counts.shape[1:]))
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
