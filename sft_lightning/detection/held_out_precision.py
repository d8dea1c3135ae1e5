"""Average precision of detections of examples that were held out in folds, and of draws of these examples.

A detection is matched with the objects of its own example alone, so that a draw of the examples only changes how often
each match counts. Detections of all folds are measured together, as COCO does it (Lin et al. 2014): the mean over folds
is too optimistic where these are small (`scripts/bench/box_intervals.py`). Where folds have detectors of several kinds,
whose scores need not agree, ranks take the place of scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import MatchRecords, average_classes, collect_matches

Array = NDArray[Any]


def match_examples(found: Tensor, true: Sequence[Tensor], num_classes: int) -> MatchRecords:
    """Match the detections of some examples with their objects as COCO does: the surest detection chooses first.

    Args:
        found: Class, corners and score of the detections of each example, (N, K, 6); -1 as the class of rows that fill
            up.
        true: Objects of each example, (M, 6), as in `sft_lightning.data.vision.boxes`.
        num_classes: Number of classes C.
    """
    every = [Detections(one[:, 1:5], one[:, 5], one[:, 0].long()) for one in found.double()]
    return collect_matches(every, true, num_classes)


def rank_scores(matched: MatchRecords, folds: Array) -> MatchRecords:
    """Return detections whose scores are minus their rank in their fold, divided by the number of its examples.

    Args:
        matched: Matches of N examples.
        folds: Fold of each example, int64, (N,).
    """
    scores, own_folds = np.zeros(len(matched.score)), folds[matched.example]
    for fold in np.unique(folds):
        own = np.flatnonzero(own_folds == fold)
        scores[own] = -(np.arange(len(own)) + 0.5) / (folds == fold).sum()
    return matched._replace(score=scores).sort()


def join_folds(parts: Sequence[MatchRecords], folds: Array) -> MatchRecords:
    """Return the detections of each fold as one of several detectors has them.

    Args:
        parts: Matches of the detector of each fold, all of the same N examples.
        folds: Fold of each example, int64, (N,).
    """
    kept = [folds[one.example] == fold for fold, one in enumerate(parts)]
    example, kind, score, is_right, is_ignored = (
        np.concatenate([part[own] for part, own in zip(column, kept, strict=True)])
        for column in zip(*(one[:-1] for one in parts), strict=True)
    )
    return MatchRecords(example, kind, score, is_right, is_ignored, parts[0].objects).sort()


def measure_precision(matched: MatchRecords, weights: Array, classes: Sequence[int]) -> Array:
    """Return the mean average precision over IoUs and classes of each draw, (B,); 0 for one without an object.

    Args:
        matched: Matches of N examples.
        weights: How often each example counts in each draw, (B, N).
        classes: Classes that are measured, each of which counts where a draw has an object of it.
    """
    mean: Array = np.nan_to_num(average_classes(matched, weights.astype(np.float64), classes))
    return mean
