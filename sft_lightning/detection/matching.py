"""Which detections are right at an intersection over union, and from which score on most are at one of 0.5."""

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
    scores, classes, y = scores[order], classes[order], y[y[:, 0] >= 0]
    (chosen,) = match_boxes(boxes[order], classes, y, torch.tensor([IOU])).T
    counts = y[:, 5] == 0
    object_scores = scores.new_full((len(y) + 1,), -1.0)  # the last one is of position -1
    object_scores[chosen] = scores
    is_right = torch.cat([counts, torch.zeros(1, dtype=torch.bool)])[chosen]
    kept = is_right | (chosen < 0)
    return Matches(scores[kept], classes[kept], is_right[kept], y[counts, 0].long(), object_scores[:-1][counts])


def match_boxes(boxes: Tensor, classes: Tensor, y: Tensor, thresholds: Tensor) -> Tensor:
    """Choose an object for each detection as COCO does: objects that count come before those that evaluation ignores.

    A detection takes the object of its class that it overlaps most, of equal ones the last. An object that counts is
    taken once, and an ignored one, of which the overlap is a share of the detection, any number of times.

    Args:
        boxes: Corners of the detections, those of falling scores first, (K, 4).
        classes: Their classes, int64, (K,).
        y: Objects of the image, (M, 6), without padding.
        thresholds: Smallest intersection over union of each way to match, (T,).

    Returns:
        Positions in `y`, int64, (K, T); -1 for none.
    """
    chosen = torch.full((len(boxes), len(thresholds)), -1)
    if not len(boxes) or not len(y):
        return chosen
    is_ignored = y[:, 5] > 0
    overlap = box_iou(boxes, y[:, 1:5].to(boxes))
    if bool(is_ignored.any()):
        overlap[:, is_ignored] = _find_shares(boxes, y[is_ignored, 1:5].to(boxes))
    overlap = overlap.where(classes[:, None] == y[:, 0].long(), 0.0)
    is_taken = torch.zeros(len(thresholds), len(y), dtype=torch.bool)
    backward = torch.arange(len(y) - 1, -1, -1)
    for k in (overlap.amax(1) >= thresholds.min()).nonzero()[:, 0].tolist():
        row = overlap[k]
        fits = (row >= thresholds[:, None]) & (is_ignored | ~is_taken)
        counts = fits & ~is_ignored
        fits = torch.where(counts.any(1, keepdim=True), counts, fits)
        best = row.where(fits, -1.0)[:, backward].argmax(1)
        hit = fits.any(1)
        chosen[k] = backward[best].where(hit, -1)
        is_taken[hit, chosen[k, hit]] = True
    return chosen


def _find_shares(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the share of each box that lies in each other one, (K, M)."""
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    sides = (torch.minimum(boxes[:, None, 2:], others[:, 2:]) - low).clamp_min(0)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (sides.prod(2) / areas[:, None]).nan_to_num()


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
