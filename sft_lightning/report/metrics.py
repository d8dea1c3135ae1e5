"""Numbers of a report, computed from features, logits and labels alone."""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from sft_lightning.report.evaluation import Predictions

BINS = 15


def compute_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Compute the expected calibration error in 15 bins, as in the metrics of a run.

    Args:
        logits: Logits of the classes, (N, C).
        labels: True classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C): then each
            pair of an example and a class counts.
    """
    if labels.ndim == 2:
        return float(binary_calibration_error(logits.sigmoid().flatten(), labels.flatten(), n_bins=BINS))
    return float(multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS))


def pair_confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and whether what they are of is true, (M,) each.

    Args:
        logits: Logits of the classes, (N, C).
        labels: True classes, int64, (N,), for the probability of each predicted class, M = N; or 1 for each class of an
            example and 0 for the others, (N, C), for all of them, M = N C.
    """
    if labels.ndim == 2:
        return logits.sigmoid().flatten(), labels.flatten() > 0
    confidence, predicted = logits.softmax(1).max(1)
    return confidence, predicted == labels


def bin_reliability(logits: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """Return the mean confidence, the share that is true and the number of each bin that is not empty.

    Args:
        logits: Logits of the classes, (N, C).
        labels: True classes, (N,) or (N, C), as `pair_confidence` takes them.
    """
    confidence, is_true = pair_confidence(logits, labels)
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    filled = []
    for k in range(BINS):
        mask = bins == k
        if mask.any():
            filled.append((float(confidence[mask].mean()), float(is_true[mask].double().mean()), int(mask.sum())))
    return filled


def count_confusions(judged: Predictions, num_classes: int) -> Tensor:
    """Return the confusion matrix, int64, (C, C): rows by true class, columns by predicted class.

    Args:
        judged: Predictions of a split with labels.
        num_classes: Number of classes.
    """
    return torch.bincount(judged.labels * num_classes + judged.predicted, minlength=num_classes**2).view(
        num_classes, num_classes
    )


def choose_to_label(uncertainty: Tensor, features: Tensor, labeled_features: Tensor, count: int) -> list[int]:
    """Choose examples that are uncertain, and that differ from the labeled examples and each other.

    Among the most uncertain tenth (by entropy; at least 10 candidates for each choice), repeatedly choose the example
    farthest from all labeled and chosen examples: k-center greedy (Sener & Savarese 2018).

    Args:
        uncertainty: Entropy of the prediction of each candidate, (N,).
        features: Features of the candidates, (N, F).
        labeled_features: Features of the labeled examples, (M, F).
        count: Number of examples to choose.

    Returns:
        Positions, in the order in which to label them.
    """
    pool = uncertainty.argsort(descending=True)[: max(10 * count, len(uncertainty) // 10)]
    x = F.normalize(features[pool], dim=1)
    distance = torch.cdist(x, F.normalize(labeled_features, dim=1)).min(1).values
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        k = int(distance.argmax())
        chosen.append(int(pool[k]))
        distance = torch.minimum(distance, torch.cdist(x, x[k : k + 1])[:, 0])
        distance[k] = -1
    return chosen


def project_pca(x: Tensor) -> tuple[Tensor, Tensor]:
    """Project features onto the two directions of the largest variance (PCA).

    Args:
        x: Features, (N, F).

    Returns:
        Coordinates (N, 2), and the share of the variance in each direction, (2,).
    """
    centered = (x - x.mean(0)).double()
    if x.shape[1] <= x.shape[0]:
        values, vectors = torch.linalg.eigh(centered.T @ centered)
        coordinates = centered @ vectors
    else:  # fewer examples than features: the Gram matrix is smaller and gives the same coordinates
        values, vectors = torch.linalg.eigh(centered @ centered.T)
        coordinates = vectors * values.clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(1e-300)
    missing = (0, max(0, 2 - coordinates.shape[1]))
    return F.pad(coordinates.flip(1)[:, :2], missing), F.pad(share.flip(0)[:2], missing)


def project_umap(x: Tensor) -> Tensor | None:
    """Project features to the plane by UMAP (McInnes et al. 2018); None without umap-learn or for under 20 examples.

    Args:
        x: Features, (N, F).

    Returns:
        Coordinates, (N, 2).
    """
    if find_spec("umap") is None or len(x) < 20:
        return None
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a fixed seed limits it to one core
        coordinates = umap.UMAP(n_neighbors=15, random_state=0).fit_transform(x.numpy())
    return torch.from_numpy(coordinates)
