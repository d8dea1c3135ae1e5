"""Average precision in each fold of held-out examples, also of examples that were drawn several times.

A detection is matched with the objects of its own example alone, so that a draw of the examples only changes how often
each match counts. Scores of detectors that were trained without different folds need not agree: average precision is
measured within each fold, and averaged over the folds by their objects (Forman & Scholz 2010, "Apples-to-Apples in
Cross-Validation Studies", recommend the same for areas under curves). With a single fold it is COCO's (Lin et al.
2014).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MOST = 20_000_000  # numbers in memory at once

Array = NDArray[Any]


class MatchedExamples(NamedTuple):
    """Detections and objects of some examples, matched.

    Attributes:
        example: Position of the example of each detection, int64, (D,).
        kind: Its class, int64, (D,).
        score: Its score, (D,).
        is_right: Whether it is the detection of an object, at each of `IOUS`, boolean, (T, D).
        counts: Whether it counts, since it is not one of an ignored object, boolean, (T, D).
        objects: Number of objects of each class that count in each example, int64, (N, C).
    """

    example: Array
    kind: Array
    score: Array
    is_right: Array
    counts: Array
    objects: Array


def match_examples(found: Tensor, true: Sequence[Tensor], num_classes: int) -> MatchedExamples:
    """Match the detections of some examples with their objects as COCO does: the surest detection chooses first.

    Args:
        found: Class, corners and score of the detections of each example, (N, K, 6); -1 as the class of rows that fill
            up.
        true: Objects of each example, (M, 6), as in `sft_lightning.data.vision.boxes`.
        num_classes: Number of classes C.
    """
    objects = np.zeros((len(true), num_classes), dtype=np.int64)
    rows: list[tuple[Array, Array, Array, Array, Array]] = []
    for i, (own, y) in enumerate(zip(found.double(), true, strict=True)):
        y = y[y[:, 0] >= 0].double()
        objects[i] = np.bincount(y[y[:, 5] == 0, 0].long().numpy(), minlength=num_classes)
        own = own[own[:, 0] >= 0]
        own = own[own[:, 5].argsort(descending=True, stable=True)]
        right, counts = np.zeros((len(IOUS), len(own)), bool), np.ones((len(IOUS), len(own)), bool)
        for kind in y[:, 0].unique():
            is_own, mine = own[:, 0] == kind, y[y[:, 0] == kind]
            right[:, is_own.numpy()], counts[:, is_own.numpy()] = _match(
                own[is_own, 1:5], mine[:, 1:5], (mine[:, 5] > 0).numpy()
            )
        rows.append((np.full(len(own), i), own[:, 0].long().numpy(), own[:, 5].numpy(), right, counts))
    if not rows:
        nothing = np.zeros((len(IOUS), 0), bool)
        rows.append((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), nothing, nothing))
    example, kind, score, is_right, has_counted = (np.concatenate(part, -1) for part in zip(*rows, strict=True))
    return MatchedExamples(example, kind, score, is_right, has_counted, objects)


def _match(found: Tensor, true: Tensor, ignored: Array) -> tuple[Array, Array]:
    """Return which detections of a class are right and which count, (T, K) each, best scores first."""
    shared = box_iou(found, true)
    overlap = shared.numpy()
    if ignored.any():  # as COCO has it, by the share of the detection that lies in the ignored one
        areas, theirs = (_areas(one) for one in (found, true))
        inside = shared * (areas[:, None] + theirs) / (1 + shared) / areas[:, None].clamp_min(1e-12)
        overlap = np.where(ignored, inside.numpy(), overlap)
    right, counts = np.zeros((len(IOUS), len(found)), bool), np.ones((len(IOUS), len(found)), bool)
    is_free = np.broadcast_to(~ignored, (len(IOUS), len(true))).copy()
    least = IOUS - 1e-10
    for k in np.flatnonzero(overlap.max(1) >= least[0]):
        row = np.where(is_free, overlap[k], -1.0)
        best = len(true) - 1 - row[:, ::-1].argmax(1)  # the last of equal ones, as in COCO
        right[:, k] = row[np.arange(len(IOUS)), best] >= least
        is_free[right[:, k], best[right[:, k]]] = False
        counts[:, k] = right[:, k] | (np.where(ignored, overlap[k], -1.0).max() < least)
    return right, counts


def _areas(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


class FoldPrecision(NamedTuple):
    """Average precision of each draw of the examples.

    Attributes:
        precision: Mean over `IOUS` for each draw, class and fold, (B, C, K); 0 without an object.
        objects: Number of objects in each draw, (B, C, K).
    """

    precision: Array
    objects: Array

    def average(self, folds: Sequence[int] | None = None) -> Array:
        """Return the mean average precision of each draw, (B,); 0 for one without an object.

        Args:
            folds: Folds that count; None for all.
        """
        ours = slice(None) if folds is None else [*folds]
        precision, objects = self.precision[..., ours], self.objects[..., ours]
        total = objects.sum(2)
        by_class = (precision * objects).sum(2) / np.maximum(total, 1)
        mean: Array = by_class.sum(1) / np.maximum((total > 0).sum(1), 1)
        return mean


def measure_folds(matched: MatchedExamples, folds: Array, weights: Array, classes: Sequence[int]) -> FoldPrecision:
    """Measure the average precision of each class in each fold.

    Args:
        matched: Detections and objects of N examples.
        folds: Fold of each example, int64, (N,); those of -1 are left out.
        weights: How often each example counts in each draw, (B, N).
        classes: Classes that are measured.
    """
    shape = (len(weights), len(classes), int(folds.max()) + 1)
    precision, objects = np.zeros(shape), np.zeros(shape)
    order = np.argsort(-matched.score, kind="stable")
    for k in range(shape[2]):
        objects[:, :, k] = weights[:, folds == k] @ matched.objects[folds == k][:, [*classes]]
        for c, kind in enumerate(classes):
            own = order[(matched.kind[order] == kind) & (folds[matched.example[order]] == k)]
            size = max(1, _MOST // max(1, len(own) * len(IOUS)))
            for start in range(0, len(weights), size):
                some = slice(start, start + size)
                precision[some, c, k] = _average(matched, own, weights[some], objects[some, c, k])
    return FoldPrecision(precision, objects)


def _average(matched: MatchedExamples, own: Array, weights: Array, total: Array) -> Array:
    """Return the average precision of some detections by falling score, (B,)."""
    if not len(own):
        return np.zeros(len(weights))
    w = weights[:, None, matched.example[own]] * matched.counts[None][..., own]  # (B, T, D)
    right = (w * matched.is_right[None][..., own]).cumsum(2)
    precision = right / np.maximum(w.cumsum(2), 1e-12)
    precision = np.maximum.accumulate(precision[..., ::-1], 2)[..., ::-1]  # the best from each recall on
    reached = np.searchsorted(_RECALLS, right / np.maximum(total, 1)[:, None, None], side="right")
    steps = np.diff(reached, axis=2, prepend=0)
    found: Array = (precision * steps).sum(2).mean(1) / len(_RECALLS)
    return np.where(total > 0, found, 0.0)
