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
_NEIGHBORS = [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


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
        device = target.device
        cross = torch.tensor(_NEIGHBORS, device=device)[None, None]
        reach = find_tolerance(*target.shape[1:])
        side = torch.arange(-math.floor(reach), math.floor(reach) + 1, device=device, dtype=torch.float32)
        disk = (side[:, None].square() + side.square() <= reach**2).float()[None, None]
        counted = ~_touches((target < 0)[:, None], torch.ones_like(cross))
        for k in range(self.num_classes):  # one by one, as maps of all classes would take much memory
            true, found = (_find_boundary((mask == k)[:, None], cross) & counted for mask in (target, predicted))
            hits = (found & _touches(true, disk)).sum((1, 2, 3)), (true & _touches(found, disk)).sum((1, 2, 3))
            sizes = found.sum((1, 2, 3)), true.sum((1, 2, 3))
            precision, recall = (hit / size.clamp_min(1) for hit, size in zip(hits, sizes, strict=True))
            f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
            there = (sizes[0] + sizes[1]) > 0
            self.totals[k] += (f1 * there).sum()
            self.images[k] += there.sum()

    def compute(self) -> Tensor:
        """Return the mean over the classes that have a boundary; NaN where none has."""
        there = self.images > 0
        return (self.totals / self.images)[there].mean()


def _touches(mask: Tensor, kernel: Tensor) -> Tensor:
    """Return the pixels that have one of a mask within a kernel of odd side, boolean, (B, 1, H, W)."""
    return F.conv2d(mask.float(), kernel, padding=kernel.shape[-1] // 2) > 0.5


def _find_boundary(mask: Tensor, cross: Tensor) -> Tensor:
    """Return the pixels of a mask next to one outside of it, boolean, (B, 1, H, W)."""
    return mask & _touches(~mask, cross)
