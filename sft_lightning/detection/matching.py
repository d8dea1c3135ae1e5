"""Which detections are right at an intersection over union of 0.5, and from which score on most are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

IOU = 0.5


class Matches(NamedTuple):
    """Detections and objects of one image, matched.

    Attributes:
        scores: Score of each detection, (K,).
        found: Class of each detection, int64, (K,).
        is_right: Whether a detection is the best one of an object of its class, boolean, (K,).
        true: Class of each object that counts, int64, (M,).
        object_scores: Score of the detection of each of these, -1 where it is missed, (M,).
    """

    scores: Tensor
    found: Tensor
    is_right: Tensor
    true: Tensor
    object_scores: Tensor


def match_objects(boxes: Tensor, scores: Tensor, classes: Tensor, y: Tensor) -> Matches:
    """Match the detections of an image with its objects as COCO does: the surest detection chooses first.

    Detections of an ignored object are left out, as are rows that fill up.

    Args:
        boxes: Corners of the detections, (K, 4).
        scores: Their scores, (K,).
        classes: Their classes, int64, (K,); -1 in rows that fill up.
        y: Objects of the image, (M, 6), as in `sft_lightning.data.vision.boxes`.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order] >= 0]
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    y = y[y[:, 0] >= 0]
    y = y[y[:, 5].argsort(stable=True)]  # those that count come first
    true, counts = y[:, 0].long(), y[:, 5] == 0
    overlap = box_iou(boxes, y[:, 1:5].to(boxes)) if len(y) else boxes.new_zeros(len(boxes), 0)
    overlap = overlap.where(classes[:, None] == true, 0.0)
    is_right = torch.zeros(len(boxes), dtype=torch.bool)
    is_left_out = is_right.clone()
    object_scores = scores.new_full((len(y),), -1.0)
    for k, row in enumerate(overlap):
        free = row.where(counts & (object_scores < 0), 0.0)
        if len(free) and float(free.max()) >= IOU:
            is_right[k] = True
            object_scores[free.argmax()] = scores[k]
        elif bool((row[~counts] >= IOU).any()):
            is_left_out[k] = True
    kept = ~is_left_out
    return Matches(scores[kept], classes[kept], is_right[kept], true[counts], object_scores[counts])


class Counts(NamedTuple):
    """Detections from some score on.

    Attributes:
        right: Number of right ones.
        found: Number of all.
        true: Number of objects.
    """

    right: int
    found: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; 1 without any."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of the objects that are found; 1 without any."""
        return self.right / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where there is nothing to find and nothing is found."""
        return 2 * self.right / (self.found + self.true) if self.found + self.true else 1.0


def count_matches(matches: Sequence[Matches], threshold: float, kind: int | None = None) -> Counts:
    """Count detections and objects.

    Args:
        matches: Matches of some images.
        threshold: Smallest score that counts.
        kind: Class that is counted; None for all.
    """
    right = found = true = 0
    for one in matches:
        shown = one.scores >= threshold
        kept, real = (shown, torch.ones_like(one.true, dtype=torch.bool))
        if kind is not None:
            kept, real = shown & (one.found == kind), one.true == kind
        right += int((one.is_right & kept).sum())
        found += int(kept.sum())
        true += int(real.sum())
    return Counts(right, found, true)


def choose_threshold(matches: Sequence[Matches]) -> float:
    """Return the score from which the F1 of all detections is largest; 0.5 without a right detection.

    Args:
        matches: Matches of some images.
    """
    scores, is_right = (torch.cat([getattr(one, name) for one in matches]) for name in ("scores", "is_right"))
    total = sum(len(one.true) for one in matches)
    if not bool(is_right.any()):
        return 0.5
    order = scores.argsort(descending=True, stable=True)
    right = is_right[order].cumsum(0).double()
    f1 = 2 * right / (torch.arange(1, len(order) + 1) + total)
    sorted_scores = scores[order]
    is_last = torch.ones(len(order), dtype=torch.bool)
    is_last[:-1] = sorted_scores[:-1] > sorted_scores[1:]  # equal scores count together
    return float(sorted_scores[f1.where(is_last, -1.0).argmax()])
