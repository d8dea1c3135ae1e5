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

from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import MatchRecords, average_precision, collect_matches

_MOST = 2_000_000  # numbers in memory at once

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


def measure_folds(matched: MatchRecords, folds: Array, weights: Array, classes: Sequence[int]) -> FoldPrecision:
    """Measure the average precision of each class in each fold.

    Args:
        matched: Detections and objects of N examples.
        folds: Fold of each example, int64, (N,); those of -1 are left out.
        weights: How often each example counts in each draw, (B, N).
        classes: Classes that are measured.
    """
    shape = (len(weights), len(classes), int(folds.max()) + 1)
    precision, objects = np.zeros(shape), np.zeros(shape)
    for k in range(shape[2]):
        own = matched.select(folds == k)
        size = max(1, _MOST // max(1, len(own.example)))
        for start in range(0, len(weights), size):
            some = slice(start, start + size)
            times = weights[some][:, folds == k].astype(np.float64)
            for c, kind in enumerate(classes):
                precision[some, c, k] = np.nan_to_num(average_precision(own, times, kind))
                objects[some, c, k] = times @ own.objects[:, kind]
    return FoldPrecision(precision, objects)
