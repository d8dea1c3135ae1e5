"""Interface of tasks: the target that a model predicts, its head, its loss and its metrics."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sft_lightning.classifiers.base import LEAST
from sft_lightning.tasks.presentation import TaskPresentation


class StageMetrics(Protocol):
    """Metrics of one stage, an `nn.Module`."""

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets."""

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all batches and processes, and reset."""


class Task(TaskPresentation):
    """Kind of target, apart from the network that predicts it and from the kind of its inputs.

    Attributes:
        name: Name of the task, as strategies list it, such as `classification`.
        target: Name of its targets, as data modules give it: `class` or `class_set`.
        monitor: Validation metric that chooses the best checkpoint, and `min` or `max`.
        example_metric: Name and title of `example_scores`.
        judged_metric: Name and title of the mean of `judge`.
        has_thresholds: Whether classes have thresholds from which they are predicted.
        num_classes: Number of classes C.
        label_smoothing: Share of the target that is spread over other classes.
        is_dense: Whether each pixel has a target, so that features are maps, (B, F, h, w).
    """

    is_dense: ClassVar[bool] = False
    name: ClassVar[str]
    target: ClassVar[str]
    monitor: ClassVar[tuple[str, str]]
    example_metric: ClassVar[tuple[str, str]]
    judged_metric: ClassVar[tuple[str, str]] = ("accuracy", "accuracy")
    has_thresholds: ClassVar[bool] = False
    num_classes: int
    label_smoothing: float

    @abstractmethod
    def build_head(self, num_features: int) -> nn.Linear:
        """Build the layer from features to outputs, with a `weight` of shape (C, F).

        Args:
            num_features: Number of features F.
        """

    def apply_classifier(self, classifier: nn.Module, features: Tensor) -> Tensor:
        """Apply a fitted classifier of vectors to features, and return outputs, (B, ...).

        Args:
            classifier: Module from vectors, (N, F), to logits, (N, C).
            features: Features, (B, F), or maps of them where each pixel has a target.
        """
        outputs: Tensor = classifier(features)
        return outputs

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

    @abstractmethod
    def decide(self, outputs: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return what is predicted, of the shape of the targets.

        Args:
            outputs: Outputs of the head, (B, ...).
            thresholds: Probability from which each class is predicted, (C,); None for 0.5. Unused where one class of
                several is predicted.
        """

    @abstractmethod
    def agrees(self, outputs: Tensor, expected: Tensor, tolerance: Tensor) -> Tensor:
        """Return whether a program decides as the network that it was written from, boolean.

        Args:
            outputs: Outputs of the program, (B, ...).
            expected: Outputs of the network, (B, ...).
            tolerance: Allowed difference of each output, (B, ...).
        """

    @abstractmethod
    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each example without smoothing or weights, (B,).

        Args:
            outputs: Outputs of the head, (B, ...).
            target: Targets, (B, ...).
        """

    def judge(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return how well each example is predicted where two networks are compared example by example, float, (B,).

        By default 1 where it is right as a whole and 0 elsewhere.

        Args:
            outputs: Outputs of the head, (B, ...).
            target: Targets, (B, ...).
        """
        return self.is_right(outputs, target).float()

    @property
    def metric(self) -> tuple[str, str]:
        """Name and title of the metric by which models are compared."""
        name = self.monitor[0].removeprefix("val/")
        return name, self.metric_titles[name]

    @abstractmethod
    def example_scores(self, outputs: Tensor, target: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return how well each example is predicted, 0 to 1, (B,).

        Args:
            outputs: Outputs of the head, (B, ...).
            target: Targets, (B, ...).
            thresholds: Probability from which each class is predicted, as in `decide`.
        """

    def fit_thresholds(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Choose the probability of each class from which it is predicted, float32, (C,); empty where there is none.

        Args:
            outputs: Calibrated outputs of validation examples, (N, ...).
            target: Their targets, (N, ...).
        """
        return torch.empty(0)

    def measure(self, outputs: Tensor, target: Tensor) -> dict[str, float]:
        """Return the metrics of a stage for outputs that are all there.

        Args:
            outputs: Outputs of the head, (N, ...).
            target: Targets, (N, ...).
        """
        metrics: Any = self.build_metrics()
        metrics.update(outputs, target)
        return {name: float(value) for name, value in metrics.compute().items()}

    @abstractmethod
    def measure_calibrated(self, outputs: Tensor, target: Tensor, thresholds: Tensor) -> dict[str, float]:
        """Return the metrics that a calibration changes, under names of their own.

        Args:
            outputs: Outputs divided by the temperature, (N, ...).
            target: Targets, (N, ...).
            thresholds: Thresholds from `fit_thresholds`.
        """

    def fit_shared_threshold(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Choose one probability from which all classes are predicted, for few examples, float32, (C,).

        Args:
            outputs: Outputs of examples that were held out, (N, ...).
            target: Their targets, (N, ...).

        Returns:
            The same threshold for each class; empty where there is none.
        """
        return torch.empty(0)

    def invert_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return outputs that have given probabilities, of the same shape; below 1e-6 these count as that.

        Args:
            probabilities: Probabilities, (..., C).
        """
        return probabilities.clamp_min(LEAST).log()
