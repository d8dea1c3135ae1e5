"""Interface of tasks: the target that a model predicts, its head, its loss and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn


class StageMetrics(Protocol):
    """Metrics of one stage, an `nn.Module`."""

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets."""

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, and reset."""


class Task(ABC):
    """Kind of target, apart from the network that predicts it and from the kind of its inputs.

    Attributes:
        name: Name of the task, as strategies list it, such as `classification`.
        monitor: Validation metric that chooses the best checkpoint, and `min` or `max`.
        num_classes: Number of classes C.
        label_smoothing: Share of the target that is spread over other classes.
        is_dense: Whether each pixel has a target, so that features are maps, (B, F, h, w).
    """

    is_dense: ClassVar[bool] = False
    name: ClassVar[str]
    monitor: ClassVar[tuple[str, str]]
    num_classes: int
    label_smoothing: float

    @abstractmethod
    def build_head(self, num_features: int) -> nn.Linear:
        """Build the layer from features to outputs, with a `weight` of shape (C, F).

        Args:
            num_features: Number of features F.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the supervised loss, a scalar.

        Args:
            outputs: Outputs of the head, (B, ...).
            target: Targets, (B, ...).
            weight: Weight of each class; None for equal ones.
        """

    @abstractmethod
    def build_metrics(self) -> nn.Module:
        """Build the metrics of one stage, a `StageMetrics`."""

    def name_metrics(self, values: dict[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
        """Return metrics under the names of the log; those of single classes get the names of these.

        Args:
            values: Metrics from `build_metrics`.
            class_names: Names of the classes.
        """
        return values

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities, of the shape of the outputs.

        Args:
            outputs: Outputs of the head, (B, ...).
        """

    @abstractmethod
    def is_right(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return whether each example is predicted correctly, boolean, (B,).

        Args:
            outputs: Outputs of the head, (B, ...).
            target: Targets, (B, ...).
        """

    @abstractmethod
    def is_known(self, target: Tensor) -> Tensor:
        """Return which examples have labels, boolean, (B,).

        Args:
            target: Targets, (B, ...); -1 where unknown.
        """
