"""Average precision of detections of examples that were held out in folds, and of draws of these examples.

A detection is matched with the objects of its own example alone, so that a draw of the examples only changes how often
each match counts. Detections of all folds are measured together, as COCO does it (Lin et al. 2014): the mean over folds
is too optimistic where these are small (`scripts/bench/box_intervals.py`). Where folds have detectors of several kinds,
whose scores need not agree, ranks take the place of scores.
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


def rank_scores(matched: MatchedExamples, folds: Array) -> MatchedExamples:
    """Return detections whose scores are minus their rank in their fold, divided by the number of its examples.

    Args:
        matched: Detections and objects of N examples.
        folds: Fold of each example, int64, (N,).
    """
    scores, own_folds = np.zeros(len(matched.score)), folds[matched.example]
    for fold in np.unique(folds):
        own = np.flatnonzero(own_folds == fold)
        order = own[np.argsort(-matched.score[own], kind="stable")]
        scores[order] = -(np.arange(len(order)) + 0.5) / (folds == fold).sum()
    return matched._replace(score=scores)


def join_folds(parts: Sequence[MatchedExamples], folds: Array) -> MatchedExamples:
    """Return the detections of each fold as one of several detectors has them.

    Args:
        parts: Detections of the detector of each fold, all of the same N examples.
        folds: Fold of each example, int64, (N,).
    """
    kept = [folds[one.example] == fold for fold, one in enumerate(parts)]
    joined = (
        np.concatenate([part[..., own] for part, own in zip(parts_of, kept, strict=True)], -1)
        for parts_of in zip(*(one[:-1] for one in parts), strict=True)
    )
    example, kind, score, is_right, counts = joined
    order = np.argsort(example, kind="stable")  # which decides between equal scores
    return MatchedExamples(
        example[order], kind[order], score[order], is_right[:, order], counts[:, order], parts[0].objects
    )


def measure_precision(matched: MatchedExamples, weights: Array, classes: Sequence[int]) -> Array:
    """Return the mean average precision over `IOUS` and classes of each draw, (B,); 0 for one without an object.

    Args:
        matched: Detections and objects of N examples.
        weights: How often each example counts in each draw, (B, N).
        classes: Classes that are measured, each of which counts where a draw has an object of it.
    """
    order = np.argsort(-matched.score, kind="stable")
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for kind in classes:
        own, objects = order[matched.kind[order] == kind], weights @ matched.objects[:, kind]
        size = max(1, _MOST // max(1, len(own)))
        for start in range(0, len(weights), size):
            some = slice(start, start + size)
            total[some] += _average(matched, own, weights[some], objects[some])
        count += objects > 0
    mean: Array = total / np.maximum(count, 1)
    return mean


def _average(matched: MatchedExamples, own: Array, weights: Array, objects: Array) -> Array:
    """Return the average precision of the detections of a class by falling score, (B,)."""
    w = weights[:, matched.example[own]]
    every, total = w.cumsum(1), np.zeros(len(w))
    for right, counts in zip(matched.is_right[:, own], matched.counts[:, own], strict=True):
        at = np.flatnonzero(right)  # precision is highest there, and recall rises
        seen = every if counts.all() else (w * counts).cumsum(1)
        hits = w[:, at].cumsum(1)
        precision = hits / np.maximum(seen[:, at], 1e-12)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # the best from each recall on
        reached = np.searchsorted(_RECALLS, hits / np.maximum(objects, 1)[:, None], side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(1)
    found: Array = np.where(objects > 0, total, 0.0) / (len(IOUS) * len(_RECALLS))
    return found
