"""Precision-recall curves of all classes in TensorBoard."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


def compute_curves(counts: Tensor) -> Tensor:
    """The points of the curves: an example is taken for one of the class from a predicted probability on.

    Args:
        counts: int64, (2, K, T): examples of other classes, and of the class, by the step of the probability.

    Returns:
        float32, (K, 6, T): true positives, false positives, true negatives, false negatives, precision, recall, by
        threshold, from 0 to 1. Precision is 1 where nothing is taken for the class.
    """
    taken = counts.flip(-1).cumsum(-1).flip(-1)
    false, true = taken.double()
    missed, left = true[:, :1] - true, false[:, :1] - false
    both = true + false
    precision = torch.where(both > 0, true / both.clamp_min(1), 1.0)
    recall = true / true[:, :1].clamp_min(1)
    return torch.stack((true, false, left, missed, precision, recall), 1).float()


def write_curves(writer: SummaryWriter, group: str, counts: Tensor, names: Sequence[str], step: int) -> None:
    """Writes a curve for each class that has examples.

    Args:
        writer: Of the run.
        group: Of the tags.
        counts: See `compute_curves`.
        names: Of the classes.
        step: Of the network.
    """
    for name, points, own in zip(names, compute_curves(counts), counts[1].sum(-1), strict=True):
        if own > 0:
            tp, fp, tn, fn, precision, recall = points
            writer.add_pr_curve_raw(f"{group}/{name}", tp, fp, tn, fn, precision, recall, step, points.shape[1])
