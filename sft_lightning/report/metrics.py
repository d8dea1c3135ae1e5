"""What is calculated from features, logits and labels, and nothing else."""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from sft_lightning.report.evaluation import Predictions

BINS = 15


def compute_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in 15 bins, as in the metrics of a run.

    Args:
        logits: (N, C).
        labels: int64, (N,).
    """
    return float(multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS))


def bin_reliability(logits: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of examples of each bin that has some.

    Args:
        logits: (N, C).
        labels: int64, (N,).
    """
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    found = []
    for k in range(BINS):
        own = bins == k
        if own.any():
            right = (predicted[own] == labels[own]).double().mean()
            found.append((float(confidence[own].mean()), float(right), int(own.sum())))
    return found


def count_confusions(judged: Predictions, num_classes: int) -> Tensor:
    """Rows true, columns predicted, int64 of shape (C, C).

    Args:
        judged: A split with labels.
        num_classes: C.
    """
    return torch.bincount(judged.labels * num_classes + judged.predicted, minlength=num_classes**2).view(
        num_classes, num_classes
    )


def choose_to_label(unlabeled: Predictions, known: Tensor, count: int) -> list[int]:
    """Examples that the network is unsure of, and that differ from the labeled ones and each other.

    Of the most uncertain tenth (by entropy, at least 10 for each one wanted) the one farthest from all that are
    labeled or chosen is taken, again and again: k-center greedy (Sener & Savarese 2018).

    Args:
        unlabeled: Candidates.
        known: Features of the labeled examples, (M, F).
        count: How many.

    Returns:
        Positions, in the order in which to label them.
    """
    p = unlabeled.logits.double().softmax(1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1)
    pool = entropy.argsort(descending=True)[: max(10 * count, len(entropy) // 10)]
    x = F.normalize(unlabeled.features[pool], dim=1)
    distance = torch.cdist(x, F.normalize(known, dim=1)).min(1).values
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        k = int(distance.argmax())
        chosen.append(int(pool[k]))
        distance = torch.minimum(distance, torch.cdist(x, x[k : k + 1])[:, 0])
        distance[k] = -1
    return chosen


def project_pca(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions of the largest variance (PCA).

    Args:
        x: (N, F).

    Returns:
        Coordinates (N, 2), and the share of the variance in each direction, (2,).
    """
    centered = (x - x.mean(0)).double()
    if x.shape[1] <= x.shape[0]:
        values, vectors = torch.linalg.eigh(centered.T @ centered)
        places = centered @ vectors
    else:  # the same from the smaller of the two products
        values, vectors = torch.linalg.eigh(centered @ centered.T)
        places = vectors * values.clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(1e-300)
    missing = (0, max(0, 2 - places.shape[1]))
    return F.pad(places.flip(1)[:, :2], missing), F.pad(share.flip(0)[:2], missing)


def project_umap(x: Tensor) -> Tensor | None:
    """Neighbors as neighbors in the plane: UMAP, McInnes et al. 2018; None where it is not installed.

    Args:
        x: (N, F).

    Returns:
        (N, 2).
    """
    if find_spec("umap") is None or len(x) < 20:
        return None
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that a seed takes one core
        made = umap.UMAP(n_neighbors=15, random_state=0).fit_transform(x.numpy())
    return torch.from_numpy(made)
