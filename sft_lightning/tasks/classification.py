"""Classification: one class of several for each example."""

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.tasks.base import Task
from sft_lightning.tasks.classification_metrics import ClassifierMetrics
from sft_lightning.utils.errors import InputError, check_decay


class Classification(Task):
    """One class of several, by a linear layer and the cross-entropy.

    Targets are classes, int64, (B,); outputs are logits, (B, C).
    """

    name: ClassVar[str] = "classification"
    target: ClassVar[str] = "class"
    monitor: ClassVar[tuple[str, str]] = ("val/accuracy", "max")
    metric_titles: ClassVar[dict[str, str]] = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "calibration_error": "expected calibration error (15 bins)",
        "calibrated_error": "the same with the temperature",
        "loss": "cross-entropy",
    }
    hub_metrics: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("accuracy", "accuracy", "accuracy"),
        ("f1", "macro_f1", "macro F1"),
    )
    example_metric: ClassVar[tuple[str, str]] = ("accuracy", "accuracy")
    explained_class: ClassVar[str] = "predicted class"
    uneven_advice: ClassVar[str] = (
        "Read balanced_accuracy and macro_f1 beside accuracy, and try class_weights: balanced or balanced_labels: true"
    )
    uncertainty_note: ClassVar[str] = "the entropy of the prediction, 1 where all classes are equally likely"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        """Keep the settings.

        Args:
            num_classes: Number of classes C.
            label_smoothing: Share of the target spread over all classes.

        Raises:
            InputError: A setting is out of its range.
        """
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}: a classifier needs labeled data of at least 2 classes")
        check_decay(label_smoothing=label_smoothing)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing

    def build_head(self, num_features: int) -> nn.Linear:
        """Build a linear layer from features, (B, F), to logits, (B, C)."""
        return nn.Linear(num_features, self.num_classes)

    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the cross-entropy, weighted by class and averaged by the weights."""
        if weight is None:
            return F.cross_entropy(outputs, target, label_smoothing=self.label_smoothing)
        if not self.label_smoothing:
            return F.cross_entropy(outputs, target, weight)
        # torch weights each class of the smoothed target separately, so that a confident prediction of a rare class
        # could minimize the loss of a common example.
        loss = F.cross_entropy(outputs, target, reduction="none", label_smoothing=self.label_smoothing)
        each = weight[target].to(loss)
        return (loss * each).sum() / each.sum()

    def build_metrics(self) -> ClassifierMetrics:
        """Build loss, accuracy, macro-F1, calibration error and the confusion matrix."""
        return ClassifierMetrics(self.num_classes)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, (B, C)."""
        return outputs.softmax(1)

    def is_right(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return whether the most probable class of each example is its own."""
        return outputs.argmax(1) == target

    def is_known(self, target: Tensor) -> Tensor:
        """Return which examples have labels."""
        return target >= 0

    def decide(self, outputs: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return the most probable class of each example, int64, (B,)."""
        return outputs.argmax(1)

    def agrees(self, outputs: Tensor, expected: Tensor, tolerance: Tensor) -> Tensor:
        """Return whether the most probable class of each example is the same, (B,)."""
        return outputs.argmax(1) == expected.argmax(1)

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each example, (B,)."""
        return F.cross_entropy(outputs, target, reduction="none")

    def example_scores(self, outputs: Tensor, target: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return 1 where the most probable class is right, and 0 elsewhere, (B,)."""
        return (outputs.argmax(1) == target).float()

    def uncertainty(self, outputs: Tensor) -> Tensor:
        """Return the entropy of each prediction, 1 where all classes are equally likely, float64, (B,)."""
        p = outputs.double().softmax(1)
        return -(p * p.clamp_min(1e-12).log()).sum(1) / math.log(self.num_classes)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return the largest probability, (B,)."""
        return outputs.softmax(1).max(1).values

    def describe_mistake(self, probabilities: Tensor, decided: Tensor, target: Tensor, names: Sequence[str]) -> str:
        """Return the predicted class and its probability."""
        return f"predicted {names[int(decided)]}, confidence {float(probabilities[int(decided)]):.0%}"

    def format_code(self, description: str | None) -> list[str]:
        """Return the softmax and the most probable class."""
        lines = ["probabilities = np.exp(logits - logits.max(1, keepdims=True))"]
        lines.append("probabilities /= probabilities.sum(1, keepdims=True)")
        if description is None:
            return [*lines, "print(probabilities[0].argmax(), probabilities[0].max())"]
        lines.append(f'names = json.load(open("{description}", encoding="utf-8"))["class_names"]')
        return [*lines, "print(names[probabilities[0].argmax()], probabilities[0].max())"]

    def describe_aim(self) -> str:
        """Return what a classifier is for."""
        return f"tell {self.num_classes} classes apart"

    def explain_limit(self) -> str:
        """Return what happens to an example of another class."""
        return (
            f"It knows {self.num_classes} classes and no other: what belongs to none of them is given one all the "
            "same, and its probability can be high. It does not say that something is unknown."
        )

    def measure_calibrated(self, outputs: Tensor, target: Tensor, thresholds: Tensor) -> dict[str, float]:
        """Return the calibration error."""
        return {"calibrated_error": self.measure(outputs, target)["calibration_error"]}
