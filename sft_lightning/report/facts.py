"""What there is to say of a trained classifier: its predictions, how far to trust them, and its mistakes."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from sft_lightning.cli import Built, run
from sft_lightning.data.datamodule import ImageDataModule
from sft_lightning.data.splits import Split
from sft_lightning.errors import InputError
from sft_lightning.networks.backbones import Backbone, build_backbone
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.reuse.parts import read_trained
from sft_lightning.runs import find_checkpoint

BINS = 15
_FEW = 2000  # examples of the map, and unlabeled ones among which some are chosen to be labeled


@dataclass
class Judged:
    """A split as the network sees it.

    Attributes:
        name: Of the split.
        ids: Names of the examples.
        features: (N, F).
        logits: (N, C).
        labels: int64, (N,), -1 where unknown.
    """

    name: str
    ids: list[str]
    features: Tensor
    logits: Tensor
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """Classes, int64 of shape (N,)."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return float((self.predicted == self.labels).double().mean())


class Facts:
    """A run and what its last iterate makes of its splits."""

    def __init__(self, name: str) -> None:
        """Reads the run and computes the features that are not kept yet.

        Args:
            name: Folder of a run, or a checkpoint.

        Raises:
            InputError: It is none, or no classifier, or it has nothing to be judged by.
        """
        try:
            checkpoint = find_checkpoint(name, Path("."))
        except InputError as error:
            raise InputError(str(error).replace("ckpt_path", "run", 1)) from error
        self.folder = checkpoint.parent.parent
        trained = read_trained(checkpoint)
        self.about: dict[str, Any] = trained.about
        if not trained.head:
            raise InputError(f"run {name!r} ({self.about['made_by']}) has no classifier: give one that has")
        data = run(["test", "--ckpt_path", str(checkpoint)], Built).datamodule
        if not isinstance(data, ImageDataModule):
            raise InputError(f"run {name!r} has data of {type(data).__name__}: a report needs an ImageDataModule")
        data.setup("test")
        self.data = data
        self.class_names = data.class_names
        self.backbone = _filled(self.about, trained.backbone)
        self.head = trained.head
        judge = "test" if len(data.splits["test"]) else "val"
        if not len(data.splits[judge]):
            raise InputError(f"run {name!r} has neither a test nor a validation split: there is nothing to judge it by")
        self.judged = self._seen(judge)
        self.validation = self._seen("val") if len(data.splits["val"]) and judge != "val" else None
        self.labeled = self._seen("labeled")

    def _seen(self, name: str) -> Judged:
        split = self.data.splits[name]
        found = features(self.backbone, self.data, name)
        if found is None:
            raise InputError(f"source {self.data.source.name!r} has {name} images that cannot be read: remove them")
        x = found.float()
        return Judged(name, split.ids, x, F.linear(x, self.head["weight"], self.head["bias"]), split.labels)

    def unlabeled(self) -> Judged | None:
        """At most 2,000 unlabeled examples, chosen by the seed of the data."""
        split = self.data.splits["unlabeled"]
        if not len(split):
            return None
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.data.request.seed))[:_FEW]
        chosen = [split.indices[i] for i in order.sort().values.tolist()]
        self.data.splits["some unlabeled"] = Split(split.part, chosen)
        return self._seen("some unlabeled")

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Of `metrics.csv`: steps and values by the name of the metric; nothing where there is no such file."""
        path = self.folder / "metrics.csv"
        found: dict[str, list[tuple[int, float]]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    found.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
        return found


def _filled(about: dict[str, Any], tensors: dict[str, Tensor]) -> Backbone:
    backbone, _ = build_backbone(about["backbone"], about["image_shape"])
    backbone.load_state_dict(tensors)
    return backbone.eval()


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share: Wilson 1927.

    Args:
        share: Observed, 0 to 1.
        count: Of examples.
    """
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T of the largest likelihood of softmax(logits / T): Guo et al. 2017.

    Args:
        logits: (N, C), of a validation split.
        labels: int64, (N,).
    """
    from scipy.optimize import minimize_scalar

    x = logits.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(x / math.exp(log_t), labels))

    return math.exp(float(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in 15 bins, as in the metrics of a run.

    Args:
        logits: (N, C).
        labels: int64, (N,).
    """
    return float(multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS))


def reliability(logits: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
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


def confusion(judged: Judged, num_classes: int) -> Tensor:
    """Rows true, columns predicted, int64 of shape (C, C).

    Args:
        judged: A split with labels.
        num_classes: C.
    """
    return torch.bincount(judged.labels * num_classes + judged.predicted, minlength=num_classes**2).view(
        num_classes, num_classes
    )


def to_label_next(unlabeled: Judged, known: Tensor, count: int) -> list[int]:
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


def flat(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions of the largest variance (PCA).

    Args:
        x: (N, F).

    Returns:
        Coordinates (N, 2), and the share of the variance in each direction, (2,).
    """
    centered = (x - x.mean(0)).double()
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    share = s.square() / s.square().sum().clamp_min(1e-300)
    places = u[:, :2] * s[:2]
    missing = 2 - places.shape[1]
    return F.pad(places, (0, missing)), F.pad(share[:2], (0, missing))
