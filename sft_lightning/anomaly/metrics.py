"""Metrics of anomaly detection: of whole examples, and of their places where masks say which of them are defective."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from sft_lightning.utils.distributed import all_gather_cat, sum_over_ranks

PRO_LIMIT = 0.3  # rate of false places up to which PRO is averaged
_SHIFT = 11  # bits of a float32 that a level leaves out, so that neighbors differ by a relative 2^-12
_LEVELS = (0x7F800000 >> _SHIFT) + 1  # up to infinity
_EIGHT = np.ones((3, 3), dtype=bool)  # diagonal neighbors are connected, too, as in the code of MVTec AD


class AnomalyMetrics:
    """Metrics of one stage, equal on all processes.

    Scores of places are counted at a million levels, so that memory does not grow with the number of examples: the
    curve of a threshold is exact but for a relative difference of 2^-12 between scores.
    """

    def __init__(self) -> None:
        """Start without examples."""
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._places: Tensor | None = None
        self._regions = 0

    def update(self, scores: Tensor, labels: Tensor, places: Tensor, mask: Tensor | None) -> None:
        """Add a batch.

        Args:
            scores: Score of each example, (B,).
            labels: 0 for normal examples, and the kind of defect for others, int64, (B,).
            places: Score of each place, at least 0, (B, H, W).
            mask: 1 for defective places, 0 for normal ones and -1 where it is not known, (B, H, W), or None.
        """
        self._scores.append(scores.double())
        self._labels.append(labels.to(scores.device))
        if mask is not None:  # on the CPU, where sums are the same in every run
            self._count_places(places.cpu(), mask.cpu())

    def _count_places(self, places: Tensor, mask: Tensor) -> None:
        """Add the places of a batch: how many normal and defective ones have each level, and the share of regions."""
        if self._places is None:
            self._places = torch.zeros(3, _LEVELS, dtype=torch.float64)
        levels = (places.float().clamp_min(0).contiguous().view(torch.int32) >> _SHIFT).long()
        for row, kind in enumerate((0, 1)):
            self._places[row] += torch.bincount(levels[mask == kind], minlength=_LEVELS)
        for own, defect in zip(levels, (mask == 1).numpy(), strict=True):
            regions, count = ndimage.label(defect, _EIGHT)
            if count:
                named = torch.from_numpy(regions.astype(np.int64))
                inside = named > 0
                share = 1.0 / torch.bincount(named[inside], minlength=count + 1).double()
                self._places[2] += torch.bincount(own[inside], share[named[inside]], minlength=_LEVELS)
                self._regions += count

    def compute(self, threshold: float, kinds: Sequence[str]) -> dict[str, Tensor]:
        """Return the metrics over all batches and processes, and start anew; those without examples are left out.

        Args:
            threshold: Score above which an example counts as defective.
            kinds: Names of the labels, the first for normal examples.
        """
        scores, labels = (all_gather_cat(torch.cat(made)) for made in (self._scores, self._labels))
        regions = sum_over_ranks(torch.tensor(float(self._regions), dtype=torch.float64, device=scores.device))
        has_places = sum_over_ranks(torch.tensor(float(self._places is not None), device=scores.device))
        counts = None if self._places is None else self._places.to(scores.device)
        if has_places and counts is None:
            counts = torch.zeros(3, _LEVELS, dtype=torch.float64, device=scores.device)
        counts = None if counts is None else sum_over_ranks(counts)
        self.__init__()  # type: ignore[misc]
        values = measure_examples(scores, labels, threshold, kinds)
        if counts is not None and bool(counts[0].any()) and bool(counts[1].any()):
            values["pixel_auroc"] = _area_of_counts(counts[0], counts[1])
            values["pro"] = _integrate_pro(counts[0], counts[2] / regions)
        return values


def measure_examples(scores: Tensor, labels: Tensor, threshold: float, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Return the metrics of whole examples.

    Args:
        scores: Score of each example, (N,).
        labels: 0 for normal examples, and the kind of defect for others, int64, (N,); -1 is left out.
        threshold: Score above which an example counts as defective.
        kinds: Names of the labels, the first for normal examples.
    """
    normal, defective = scores[labels == 0], scores[labels > 0]
    values: dict[str, Tensor] = {}
    if len(normal):
        values["false_alarm_rate"] = (normal > threshold).double().mean()
    if len(defective):
        values["detection_rate"] = (defective > threshold).double().mean()
    if not len(normal) or not len(defective):
        return values
    values["auroc"] = compute_auroc(normal, defective)
    values["average_precision"] = compute_average_precision(normal, defective)
    present = [k for k in range(1, len(kinds)) if bool((labels == k).any())]
    for k in present if len(present) > 1 else ():
        own = scores[labels == k]
        values[f"auroc_{kinds[k]}"] = compute_auroc(normal, own)
        values[f"detection_rate_{kinds[k]}"] = (own > threshold).double().mean()
    return values


def compute_auroc(normal: Tensor, defective: Tensor) -> Tensor:
    """Return the probability that a defective example scores higher than a normal one, where equal scores count half.

    Args:
        normal: Scores of normal examples, (N,).
        defective: Scores of defective examples, (M,).
    """
    ordered = normal.sort().values
    below = torch.searchsorted(ordered, defective)
    up_to = torch.searchsorted(ordered, defective, right=True)
    return (below + up_to).double().mean() / (2 * len(normal))


def compute_average_precision(normal: Tensor, defective: Tensor) -> Tensor:
    """Return the mean over the defective examples of the precision at their scores.

    Args:
        normal: Scores of normal examples, (N,).
        defective: Scores of defective examples, (M,).
    """
    hits = len(defective) - torch.searchsorted(defective.sort().values, defective)
    alarms = len(normal) - torch.searchsorted(normal.sort().values, defective)
    return (hits / (hits + alarms).double()).mean()


def _area_of_counts(normal: Tensor, defective: Tensor) -> Tensor:
    """Return the area under the ROC curve of numbers of places at each level."""
    below = normal.cumsum(0) - normal
    return (defective * (below + normal / 2)).sum() / (normal.sum() * defective.sum())


def _integrate_pro(normal: Tensor, regions: Tensor) -> Tensor:
    """Return the mean overlap of regions up to a rate of false places (Bergmann et al. 2020, "Uninformed Students").

    Args:
        normal: Number of normal places at each level.
        regions: Mean over the regions of the share of their places at each level.
    """
    false_rate, overlap = ((row / row.sum()).flip(0).cumsum(0) for row in (normal, regions))
    zero = false_rate.new_zeros(1)
    false_rate, overlap = torch.cat([zero, false_rate]), torch.cat([zero, overlap])
    inside = int(torch.searchsorted(false_rate, PRO_LIMIT, right=True))
    if inside < len(false_rate):  # the curve is cut where it crosses the limit
        left, right = false_rate[inside - 1], false_rate[inside]
        at = overlap[inside - 1] + (overlap[inside] - overlap[inside - 1]) * (PRO_LIMIT - left) / (right - left)
        false_rate = torch.cat([false_rate[:inside], false_rate.new_full((1,), PRO_LIMIT)])
        overlap = torch.cat([overlap[:inside], at[None]])
    return torch.trapezoid(overlap, false_rate) / PRO_LIMIT
