"""The predictions of a network of pixels on the splits of its data, of which few maps are in memory at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.data.vision.masks import IGNORED
from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule
from sft_lightning.tasks.segmentation import Segmentation
from sft_lightning.tasks.segmentation_metrics import average_iou, count_by_example
from sft_lightning.utils.errors import InputError

_MAX_CANDIDATES = 2000  # unlabeled images from which the ones to label next are chosen
_SAMPLED = 200_000  # pixels of a split whose probabilities are kept


@dataclass
class PixelPredictions:
    """Measures of the predictions of a split, and the logits of some of its pixels.

    Attributes:
        name: Name of the split.
        ids: Identifiers of the images.
        counts: Pixels that are right, true and predicted of each image and class, int64, (N, 3, C).
        confusion: Pixels by true class (row) and predicted class (column), int64, (C, C).
        losses: Cross-entropy of each image, (N,).
        uncertainty: Mean entropy of the pixels of each image, 0 to 1, (N,).
        features: Mean features of each image, (N, F).
        logits: Logits of sampled pixels, (S, C).
        labels: Classes of these pixels, int64, (S,).
        boundary_f1: F1 of the boundaries of classes, 0 to 1; NaN where none has one.
        groups: Group of each image, such as its patient, or None.
    """

    name: str
    ids: list[str]
    counts: Tensor
    confusion: Tensor
    losses: Tensor
    uncertainty: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor
    boundary_f1: float
    groups: list[str] | None = None

    @property
    def image_ious(self) -> Tensor:
        """Mean intersection over union of each image, (N,)."""
        return average_iou(self.counts)

    @property
    def totals(self) -> Tensor:
        """Pixels that are right, true and predicted of each class, int64, (3, C)."""
        return self.counts.sum(0)


class PixelEvaluation:
    """A network of pixels and its predictions on the splits of its data."""

    def __init__(self, opened: LoadedRun) -> None:
        """Predict the held-out splits and the images that it learned from.

        Args:
            opened: Run of a network of pixels.

        Raises:
            InputError: The run has no held-out split, or images that cannot be read.
        """
        assert isinstance(opened.data, SegmentationDataModule)
        self.data, self.class_names = opened.data, opened.data.class_names
        self.task = Segmentation(self.data.num_classes)
        self._network = opened.trained.network()
        assert opened.classify is not None
        self._classify = opened.classify
        self.judged = self._predict(opened.held_out)
        has_validation = len(self.data.splits["val"]) and opened.held_out != "val"
        self.validation = self._predict("val") if has_validation else None
        self.labeled = self._predict("labeled")

    def predict_unlabeled(self) -> PixelPredictions | None:
        """Return the predictions of at most 2,000 unlabeled images, chosen by the seed of the data."""
        if not len(self.data.splits["unlabeled"]):
            return None
        return self._predict(add_subset(self.data, "unlabeled", _MAX_CANDIDATES), is_hidden=True)

    @torch.no_grad()
    def compute_logits(self, x: Tensor) -> Tensor:
        """Compute the logits of all pixels, (B, C, H, W).

        Args:
            x: Images in [0, 1], (B, C, H, W).
        """
        logits: Tensor = self._classify(self._network(x))
        return logits

    @torch.no_grad()
    def _predict(self, name: str, is_hidden: bool = False) -> PixelPredictions:
        split, count = self.data.splits[name], self.data.num_classes
        metrics = self.task.build_metrics()
        generator = torch.Generator().manual_seed(self.data.request.seed)
        each = max(1, _SAMPLED // max(1, len(split)))
        order, pieces = [], []
        for batch in self.data.batches_of(name, torch.device("cpu")):
            assert isinstance(batch.x, Tensor)
            target = torch.full_like(batch.y, IGNORED) if is_hidden else batch.y
            features = self._network(batch.x)
            logits = self._classify(features).float()
            metrics.update(logits, target)
            order.append(batch.indices)
            pieces.append(
                (
                    count_by_example(logits.argmax(1), target, count),
                    self.task.example_losses(logits, target),
                    self.task.uncertainty(logits),
                    features.float().mean((2, 3)),
                    *_sample(logits, target, each, generator),
                )
            )
        if sum(map(len, order)) != len(split):
            raise InputError(f"source {self.data.source.name!r} has {name} images that cannot be read: remove them")
        values = metrics.compute()
        assert metrics.confusion is not None
        rows = torch.cat(order).argsort()
        counts, losses, uncertainty, pooled, logits, labels = (torch.cat(part) for part in zip(*pieces, strict=True))
        measures = losses[rows], uncertainty[rows], pooled[rows]
        last = float(values["boundary_f1"]), split.part.groups_of(split.indices)
        return PixelPredictions(name, split.ids, counts[rows], metrics.confusion, *measures, logits, labels, *last)


def _sample(logits: Tensor, target: Tensor, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return logits (S, C) and classes (S,) of random counted pixels, at most `each` of an image."""
    chosen: list[tuple[Tensor, Tensor]] = []
    for own, classes in zip(logits.flatten(2), target.flatten(1), strict=True):
        known = (classes >= 0).nonzero()[:, 0]
        some = known[torch.randperm(len(known), generator=generator)[:each]]
        chosen.append((own[:, some].T, classes[some]))
    return torch.cat([x for x, _ in chosen]), torch.cat([y for _, y in chosen])
