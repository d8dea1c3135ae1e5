"""The predictions of a trained classifier on the splits of its data."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.paradigms.feature_cache import features
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
        labels: True classes, int64, (N,); -1 where unknown.
    """

    name: str
    ids: list[str]
    features: Tensor
    logits: Tensor
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """Predicted classes, int64, (N,)."""
        return self.logits.argmax(1)

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each example, (N,)."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @property
    def accuracy(self) -> float:
        """Share of right predictions, 0 to 1."""
        return float((self.predicted == self.labels).double().mean())


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
        self.backbone = trained.network()
        assert opened.classify is not None
        self.head, self.classify = trained.head, opened.classify
        self.judged = self._predict(opened.held_out)
        has_validation = len(self.data.splits["val"]) and opened.held_out != "val"
        self.validation = self._predict("val") if has_validation else None
        self.labeled = self._predict("labeled")

    def _predict(self, name: str) -> Predictions:
        split = self.data.splits[name]
        x = features(self.backbone, self.data, name)
        if x is None:
            raise InputError(f"source {self.data.source.name!r} has {name} examples that cannot be read: remove them")
        x = x.float()
        return Predictions(name, split.ids, x, self.classify(x), split.labels)

    def predict_unlabeled(self) -> Predictions | None:
        """Return the predictions of at most 2,000 unlabeled examples, chosen by the seed of the data."""
        if not len(self.data.splits["unlabeled"]):
            return None
        return self._predict(add_subset(self.data, "unlabeled", _MAX_CANDIDATES))
