"""The predictions of a trained classifier on the splits of its data."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.runs.temperature import read_temperature
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.intervals import estimate_interval
from sft_lightning.tasks.make_task import make_task
from sft_lightning.utils.errors import InputError

_MAX_CANDIDATES = 2000  # unlabeled examples from which the ones to label next are chosen


@dataclass
class Predictions:
    """Features and predictions of a split.

    Attributes:
        name: Name of the split.
        ids: Identifiers of the examples.
        features: Features of the network, (N, F).
        logits: Logits of the classes, (N, C).
        labels: True classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C); -1 where
            unknown.
        task: Kind of target.
        temperature: Divisor of the logits, which `predict` uses, too; 1 where no threshold depends on it.
        thresholds: Probability from which each class is predicted where examples have several, (C,); empty for 0.5.
        groups: Group of each example, such as its patient, or None.
    """

    name: str
    ids: list[str]
    features: Tensor
    logits: Tensor
    labels: Tensor
    task: Task
    temperature: float = 1.0
    thresholds: Tensor = field(default_factory=lambda: torch.empty(0))
    groups: list[str] | None = None

    @property
    def outputs(self) -> Tensor:
        """Logits divided by the temperature, (N, C)."""
        return self.logits / self.temperature

    @property
    def predicted(self) -> Tensor:
        """What is predicted, int64, of the shape of the labels."""
        return self.task.decide(self.outputs, self.thresholds)

    @property
    def is_right(self) -> Tensor:
        """Whether each example is predicted correctly, boolean, (N,)."""
        same: Tensor = self.predicted == self.labels
        return same if same.ndim == 1 else same.all(1)

    @property
    def losses(self) -> Tensor:
        """Loss of each example, (N,)."""
        return self.task.example_losses(self.outputs, self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of right predictions."""
        return estimate_interval(self.is_right, self.groups)

    @property
    def accuracy(self) -> float:
        """Share of right predictions, 0 to 1."""
        return float(self.is_right.double().mean())


class Evaluation:
    """A classifier and its predictions on the splits of its data."""

    def __init__(self, opened: LoadedRun) -> None:
        """Compute the features that are not cached yet.

        Args:
            opened: Run of a classifier.

        Raises:
            InputError: The run has no held-out split, or examples that cannot be read.
        """
        trained = opened.trained
        self.folder, self.data, self.metadata = opened.folder, opened.data, trained.metadata
        self.class_names = self.data.class_names
        self.task = make_task(self.data.target, self.data.num_classes)
        self.backbone = trained.network()
        assert opened.classify is not None
        self.head, self.classify = trained.head, opened.classify
        known = read_temperature(opened.checkpoint) if self.task.has_thresholds else None
        self._limits = 1.0, torch.empty(0)
        if known is not None and known.thresholds:
            self._limits = known.value, torch.tensor(known.thresholds)
        self.judged = self._predict(opened.held_out)
        has_validation = len(self.data.splits["val"]) and opened.held_out != "val"
        self.validation = self._predict("val") if has_validation else None
        self.labeled = self._predict("labeled")
        if self.validation is not None and self.task.has_thresholds:
            self._set_thresholds(self.validation)

    def _set_thresholds(self, validation: Predictions) -> None:
        """Choose the thresholds as `predict` does, and the temperature with them."""
        logits, labels = validation.logits, validation.labels
        if bool(self.task.is_right(logits, labels).all()):
            return
        temperature = fit_temperature(logits, labels)
        self._limits = temperature, self.task.fit_thresholds(logits / temperature, labels)
        for one in (self.judged, validation, self.labeled):
            one.temperature, one.thresholds = self._limits

    def _predict(self, name: str) -> Predictions:
        split = self.data.splits[name]
        x = features(self.backbone, self.data, name)
        if x is None:
            raise InputError(f"source {self.data.source.name!r} has {name} examples that cannot be read: remove them")
        x = x.float()
        labels = self.data.make_targets(split.labels)
        groups = split.part.groups_of(split.indices)
        return Predictions(name, split.ids, x, self.classify(x), labels, self.task, *self._limits, groups)

    def predict_unlabeled(self) -> Predictions | None:
        """Return the predictions of at most 2,000 unlabeled examples, chosen by the seed of the data."""
        if not len(self.data.splits["unlabeled"]):
            return None
        return self._predict(add_subset(self.data, "unlabeled", _MAX_CANDIDATES))
