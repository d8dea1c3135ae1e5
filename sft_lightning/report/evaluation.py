"""What there is to say of a trained classifier: its predictions, how far to trust them, and its mistakes."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.utils.errors import InputError

_FEW = 2000  # unlabeled examples among which some are chosen to be labeled


@dataclass
class Predictions:
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
    def losses(self) -> Tensor:
        """Cross-entropy of each example, (N,)."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return float((self.predicted == self.labels).double().mean())


class Evaluation:
    """A classifier and what it makes of its splits."""

    def __init__(self, opened: LoadedRun) -> None:
        """Computes the features that are not kept yet.

        Args:
            opened: A run.

        Raises:
            InputError: It has nothing to be judged by, or pictures that cannot be read.
        """
        trained = opened.trained
        self.folder, self.data, self.about = opened.folder, opened.data, trained.metadata
        self.class_names = self.data.class_names
        self.backbone = trained.network()
        self.head = trained.head
        self.judged = self._seen(opened.held_out)
        apart = len(self.data.splits["val"]) and opened.held_out != "val"
        self.validation = self._seen("val") if apart else None
        self.labeled = self._seen("labeled")

    def _seen(self, name: str) -> Predictions:
        split = self.data.splits[name]
        found = features(self.backbone, self.data, name)
        if found is None:
            raise InputError(f"source {self.data.source.name!r} has {name} images that cannot be read: remove them")
        x = found.float()
        return Predictions(name, split.ids, x, F.linear(x, self.head["weight"], self.head["bias"]), split.labels)

    def unlabeled(self) -> Predictions | None:
        """At most 2,000 unlabeled examples, chosen by the seed of the data."""
        if not len(self.data.splits["unlabeled"]):
            return None
        return self._seen(add_subset(self.data, "unlabeled", _FEW))
