"""Typed interface between paradigms, which request batches, and data modules, which provide them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from sft_lightning.data.batches import Labeled
from sft_lightning.data.loaders import Schedule
from sft_lightning.data.modality import Views
from sft_lightning.data.splits import SplitConfig, Splits
from sft_lightning.utils.inputs import Inputs, InputSpec


@dataclass(frozen=True)
class BatchRequest:
    """Request of a paradigm for the content of its training batches.

    Attributes:
        parts: Parts of a batch: `labeled`, `unlabeled` or both. Only these are loaded.
        views: Views of an unlabeled example: `weak`, `weak_2`, `strong`, `strong_2`, and `pretrain` once for each view
            for self-supervised pre-training, and `pretrain_local` for each smaller one.
        balanced_from_epoch: Epoch from which labeled batches hold all classes equally often; None for never.
    """

    parts: tuple[str, ...] = ("labeled",)
    views: tuple[str, ...] = ("weak",)
    balanced_from_epoch: int | None = None


@runtime_checkable
class RequestsBatches(Protocol):
    """Module that requests the content of its training batches; any other module gets labeled batches."""

    def batch_request(self) -> BatchRequest:
        """Return what the training batches should hold."""

    def make_schedule(self, epoch_steps: int) -> Schedule | None:
        """Return the schedule of the parts that each batch holds, or None if every batch holds all of them.

        Args:
            epoch_steps: Number of training batches of an epoch.
        """


@runtime_checkable
class HasBatchSize(Protocol):
    """Data module whose batch size commands can set."""

    batch_size: int


def batch_request(module: object) -> BatchRequest:
    """Return what a module requests in its training batches: labeled examples by default.

    Args:
        module: Paradigm, any other module, or None.
    """
    return module.batch_request() if isinstance(module, RequestsBatches) else BatchRequest()


class FewLabelData(ABC):
    """Interface of a data module of any modality for paradigms, callbacks and commands.

    Attributes:
        splits: Examples of `labeled`, `unlabeled`, `val` and `test`; empty before `setup`.
        views: Views of the modality.
        request: Settings of the splits, with the findings and leaks that were met.
        batch_size: Training examples per batch and process; labeled ones if both kinds are used.
        eval_batch_size: Examples of each batch in evaluation and prediction.
        unlabeled_ratio: Unlabeled examples for each labeled one.
        balanced_labels: Whether classes take turns in labeled batches if unlabeled examples are trained on, too.
        labeled_views: Views of a labeled training example, one after the other in its batch.
        batch_budget: Name of the setting that limits training batches in place of `batch_size`, if one does.
    """

    splits: Splits
    request: SplitConfig
    views: Views
    eval_batch_size: int
    unlabeled_ratio: int
    balanced_labels: bool
    labeled_views: tuple[str, ...]
    batch_budget: str | None = None

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Training examples of each batch and process."""

    @property
    @abstractmethod
    def input_spec(self) -> InputSpec:
        """What goes into a network, known before any example is read."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""

    @property
    @abstractmethod
    def epoch_steps(self) -> int:
        """Training batches of an epoch of this process, after `limit_train_batches`."""

    @property
    @abstractmethod
    def size_settings(self) -> dict[str, Any]:
        """Settings of the data other than the batch size that memory depends on, and their values."""

    @property
    def target(self) -> str:
        """What networks learn of an example: `class`, or `class_set` where examples have several classes."""
        return "class"

    @property
    def value_ranges(self) -> dict[str, list[float]]:
        """Lowest and highest value by which examples of more than 8 bits are scaled, by their kind; empty without."""
        return {}

    def make_targets(self, labels: Tensor) -> Tensor:
        """Return what networks learn of labels: the labels themselves, or 1 for each of their classes and 0 for others.

        Args:
            labels: Labels, int64, (N,); -1 where unknown.
        """
        return labels

    @property
    def normal_splits(self) -> tuple[str, ...]:
        """Names of the splits whose examples are taken as normal when defects are learned to be found."""
        return ("labeled",)

    @abstractmethod
    def name_targets(self, targets: Tensor) -> list[str]:
        """Return the label of each target; an empty text where it is unknown.

        Args:
            targets: Targets of a batch, (N,) or (N, C).
        """

    def show_annotated(self, x: Inputs) -> Tensor | list[str]:
        """Return views as people look at them, with what moves along in them, such as masks, drawn in.

        Args:
            x: Views of what `annotated_inputs_of` gives.
        """
        return self.views.show(x)

    @abstractmethod
    def labeled_counts(self) -> Tensor:
        """Return the number of training labels of each class, int64 of shape (num_classes,)."""

    def labeled_memberships(self) -> Tensor | None:
        """Return 1 for each class that a labeled example has and 0 for the others, int64, (N, C); None for one each."""
        return self.make_targets(self.splits["labeled"].labels) if self.target == "class_set" else None

    def describe_labels(self) -> str:
        """Return how many labels the classes have, in a sentence without its end."""
        names, counts = self.class_names, self.labeled_counts()
        low, high = int(counts.argmin()), int(counts.argmax())
        if counts[low] == counts[high]:
            return f"{int(counts[low])} labels for each of {len(names)} classes"
        return (
            f"{len(names)} classes with {int(counts[low])} ({names[low]}) to {int(counts[high])} ({names[high]}) labels"
        )

    # --- examples without random changes

    @property
    @abstractmethod
    def fixed_views(self) -> bool:
        """Whether labeled training examples are the same in every epoch."""

    @abstractmethod
    def labeled_batches(self, most: int, device: torch.device, name: str = "labeled") -> Iterator[Labeled]:
        """Yield batches of a split without random changes, the same on every process.

        Args:
            most: Maximum number of examples; if there are more, classes take turns.
            device: Device of the batches.
            name: Name of the split.
        """

    @abstractmethod
    def training_batches(self, most: int, device: torch.device) -> Iterator[Labeled]:
        """Yield training examples without random changes, the same on every process: labeled ones first.

        Args:
            most: Maximum number of examples, chosen by the seed.
            device: Device of the batches.
        """

    @abstractmethod
    def batches_of(self, name: str, device: torch.device) -> Iterator[Labeled]:
        """Yield all examples of a split in their order, without random changes, the same on every process.

        Args:
            name: Name of the split.
            device: Device of the batches.
        """

    @abstractmethod
    def inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return some examples of a split as networks see them without random changes, (N, ...) each.

        Args:
            name: Name of the split.
            positions: Positions of the examples in the split.
        """

    @abstractmethod
    def fingerprints(self, name: str) -> list[bytes]:
        """Compute the SHA-256 of the content of each example and of all that determines its unaugmented network inputs.

        Args:
            name: Name of the split.
        """

    def fingerprint(self, name: str) -> str:
        """Compute the SHA-256 of the fingerprints of a split's examples.

        Args:
            name: Name of the split.
        """
        return hashlib.sha256(b"".join(self.fingerprints(name))).hexdigest()

    @abstractmethod
    def use_features(self, features: dict[str, Tensor]) -> None:
        """Give features in place of the examples of some splits from now on.

        Args:
            features: Features by name of the split, of shape (N, F) and in its order; empty to read the examples again.
        """

    @abstractmethod
    def as_trained(self, run: Path, class_names: list[str] | None = None) -> Self:
        """Return the same data in the splits of a run.

        Args:
            run: Folder of the run, with `split.csv`.
            class_names: Classes of the run in the order of their numbers; None for those of this data module.

        Raises:
            InputError: The data is missing, or differs from that of the run.
        """

    @property
    @abstractmethod
    def reading_key(self) -> str:
        """Text of all settings that change how an example is read, for the keys of caches on disk."""

    # --- prediction

    @property
    @abstractmethod
    def predict_name(self) -> str:
        """Name of the data to predict."""

    @property
    @abstractmethod
    def predict_count(self) -> int:
        """Number of examples to predict, as far as it is known before they are read."""

    @property
    @abstractmethod
    def predict_listed(self) -> tuple[int, int]:
        """Number of all listed files and a checksum of their names; zeros if no files were listed."""


def few_label_data(trainer: Any) -> FewLabelData | None:
    """Return the data module of a Trainer if it is a `FewLabelData`; None for plain loaders and other data modules.

    Args:
        trainer: Trainer of a run.
    """
    data = trainer.datamodule
    return data if isinstance(data, FewLabelData) else None


def known_splits(trainer: Any) -> Splits:
    """Return the splits of the data module of a Trainer; empty if it has none.

    Args:
        trainer: Trainer of a run.
    """
    data = few_label_data(trainer)
    return {} if data is None else data.splits
