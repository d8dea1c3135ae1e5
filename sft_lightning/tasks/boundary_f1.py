"""Boundary F1: how well the outlines of classes agree, Csurka et al. 2013.

"What is a good evaluation measure for semantic segmentation?" A large region can have a high intersection over union
and a ragged outline; this measure looks at the outline alone.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

_SHARE = 0.0075  # of the diagonal: how far a boundary may lie from the true one
_NOWHERE = -1  # class of pixels without a boundary


def find_tolerance(height: int, width: int) -> float:
    """Return the distance up to which boundaries agree: 0.75 % of the diagonal, in pixels, at least 1.

    Args:
        height: Height in pixels.
        width: Width in pixels.
    """
    return max(1.0, _SHARE * math.hypot(height, width))


class BoundaryF1(Metric):
    """F1 of the boundaries of each class in each image, averaged over the images, then over the classes.

    A boundary pixel of a class has a neighbor (of four) of another class; borders of the image and of pixels that are
    not counted are none. Precision is the share of predicted boundary pixels near a true one, recall the reverse. A
    class counts in the images in which it has a true or predicted boundary.
    """

    full_state_update = False
    totals: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        """Create the empty state.

        Args:
            num_classes: Number of classes C.
        """
        super().__init__()
        self.num_classes = num_classes
        for name in ("totals", "images"):
            self.add_state(name, torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: Predicted classes, int64, (B, H, W).
            target: True classes, int64, (B, H, W); -1 is not counted.
        """
        known = target >= 0
        predicted = predicted.where(known, _NOWHERE)
        counted = ~_has_unknown_neighbor(known)
        true, found = (_mark_boundary(classes.to(torch.int32), counted) for classes in (target, predicted))
        reach = find_tolerance(*target.shape[1:])
        precision, found_sizes = self._divide(found, true, reach)
        recall, true_sizes = self._divide(true, found, reach)
        f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
        there = (found_sizes + true_sizes) > 0
        self.totals += (f1 * there).sum(0)
        self.images += there.sum(0)

    def _divide(self, boundary: Tensor, other: Tensor, reach: float) -> tuple[Tensor, Tensor]:
        """Return the share of boundary pixels near the other's of their class, and their number, (B, C) each."""
        count, height, width = boundary.shape
        side = math.floor(reach)
        padded = F.pad(other, (side,) * 4, value=_NOWHERE)
        near = torch.zeros_like(boundary, dtype=torch.bool)
        for y in range(-side, side + 1):
            for x in range(-side, side + 1):
                if y * y + x * x <= reach**2:
                    near |= padded[:, side + y : side + y + height, side + x : side + x + width] == boundary
        # A cell beside the table takes the pixels of no boundary: selecting the others waits for the device.
        cells = torch.where(boundary >= 0, boundary, self.num_classes).flatten(1).long()
        tables = []
        for values in (near, torch.ones_like(near)):
            made = torch.zeros(count, self.num_classes + 1, device=cells.device)
            tables.append(made.scatter_add_(1, cells, values.flatten(1).float())[:, :-1])
        hits, sizes = tables
        return hits / sizes.clamp_min(1), sizes

    def compute(self) -> Tensor:
        """Return the mean over the classes that have a boundary; NaN where none has."""
        there = self.images > 0
        return (self.totals / self.images)[there].mean()


def _has_unknown_neighbor(known: Tensor) -> Tensor:
    """Return the pixels that are not counted, or have one of eight neighbors that is not, boolean, (B, H, W)."""
    return F.max_pool2d((~known).float()[:, None], 3, 1, 1)[:, 0] > 0


def _mark_boundary(classes: Tensor, counted: Tensor) -> Tensor:
    """Return the classes of pixels next to one of another class, and `_NOWHERE` elsewhere, int32, (B, H, W)."""
    differs = torch.zeros_like(counted)
    down, across = classes[:, 1:] != classes[:, :-1], classes[:, :, 1:] != classes[:, :, :-1]
    differs[:, 1:] |= down
    differs[:, :-1] |= down
    differs[:, :, 1:] |= across
    differs[:, :, :-1] |= across
    return classes.where(differs & counted, _NOWHERE)
