"""Precision-recall curves of all classes for TensorBoard."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


def compute_curves(counts: Tensor) -> Tensor:
    """Compute the points of one-against-rest curves for thresholds from 0 to 1.

    Args:
        counts: Number of examples of other classes and of the class by bin of the probability, int64, (2, K, T).

    Returns:
        True positives, false positives, true negatives, false negatives, precision and recall by threshold, float32,
        (K, 6, T). Precision is 1 where no example is predicted as the class.
    """
    fp, tp = counts.flip(-1).cumsum(-1).flip(-1).double()  # at or above each threshold
    fn, tn = tp[:, :1] - tp, fp[:, :1] - fp
    predicted = tp + fp
    precision = torch.where(predicted > 0, tp / predicted.clamp_min(1), 1.0)
    recall = tp / tp[:, :1].clamp_min(1)
    return torch.stack((tp, fp, tn, fn, precision, recall), 1).float()


def write_curves(writer: SummaryWriter, group: str, counts: Tensor, names: Sequence[str], step: int) -> None:
    """Write a curve for each class that has examples.

    Args:
        writer: Writer of the run.
        group: Prefix of the tags.
        counts: Number of examples by bin of the probability, int64, (2, K, T), as for `compute_curves`.
        names: Names of the classes.
        step: Optimizer step of the network.
    """
    for name, points, count in zip(names, compute_curves(counts), counts[1].sum(-1), strict=True):
        if count > 0:
            tp, fp, tn, fn, precision, recall = points
            writer.add_pr_curve_raw(f"{group}/{name}", tp, fp, tn, fn, precision, recall, step, points.shape[1])
