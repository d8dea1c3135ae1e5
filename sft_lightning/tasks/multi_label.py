"""Multi-label classification: any number of several classes for each example."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.base import to_logits
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.multi_label_metrics import (
    MultiLabelMetrics,
    compute_example_f1,
    compute_f1,
    fit_shared_threshold,
    fit_thresholds,
)
from sft_lightning.utils.errors import InputError, check_decay

MultiLabelLoss = Literal["binary_cross_entropy", "asymmetric"]
# Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification": their settings for most data.
_FOCUS, _MARGIN = 4.0, 0.05


class MultiLabel(Task):
    """Any of several classes, by a linear layer and a loss for each class.

    Targets are 1 for each class of an example and 0 for the others, int64, (B, C); outputs are logits, (B, C).
    """

    name: ClassVar[str] = "multi_label"
    target: ClassVar[str] = "class_set"
    monitor: ClassVar[tuple[str, str]] = ("val/mean_average_precision", "max")
    metric_titles: ClassVar[dict[str, str]] = {
        "exact_match": "all classes right",
        "mean_average_precision": "mean average precision",
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "threshold_micro_f1": "micro F1 with temperature and thresholds",
        "threshold_macro_f1": "macro F1 with temperature and thresholds",
        "loss": "binary cross-entropy",
    }
    hub_metrics: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("mean_average_precision", "mean_average_precision", "mean average precision"),
        ("f1", "macro_f1", "macro F1"),
    )
    example_metric: ClassVar[tuple[str, str]] = ("example_f1", "F1 of an example")
    judged_metric: ClassVar[tuple[str, str]] = ("exact_match", "share with all classes right")
    has_thresholds: ClassVar[bool] = True
    explained_class: ClassVar[str] = "likeliest class"
    uneven_advice: ClassVar[str] = "Read macro_f1 beside micro_f1, and try class_weights: balanced"
    score_sentence: ClassVar[str] = "has a mean F1 by example of {score} on {examples}"
    test_sentence: ClassVar[str] = "its mean F1 by example is {score}"
    uncertainty_note: ClassVar[str] = "the mean entropy of the classes, 1 where each is as likely as not"

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.0, loss: MultiLabelLoss = "binary_cross_entropy"
    ) -> None:
        """Keep the settings.

        Args:
            num_classes: Number of classes C.
            label_smoothing: Share s of the target: 1 becomes 1 - s / 2, and 0 becomes s / 2.
            loss: `binary_cross_entropy`, or the `asymmetric` loss of Ridnik et al. 2021, under which classes that an
                example obviously lacks count for less.

        Raises:
            InputError: A setting is out of its range.
        """
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}: a classifier needs labeled data of at least 1 class")
        check_decay(label_smoothing=label_smoothing)
        if loss == "asymmetric" and label_smoothing:
            raise InputError(f"label_smoothing is {label_smoothing}, which the asymmetric loss replaces: leave it out")
        self.num_classes, self.label_smoothing, self.kind = num_classes, label_smoothing, loss

    def build_head(self, num_features: int) -> nn.Linear:
        """Build a linear layer from features, (B, F), to logits, (B, C)."""
        return nn.Linear(num_features, self.num_classes)

    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Average the losses of all classes, weighted by class."""
        each = self._losses(outputs, target)
        if weight is not None:
            weight = weight.to(each)
            return (each * weight).sum() / (weight.sum() * len(each))
        return each.mean()

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        wanted = target.to(outputs.dtype)
        if self.kind == "binary_cross_entropy":
            smooth = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, smooth, reduction="none")
        logits = outputs.float()
        p = logits.sigmoid()
        absent = (p - _MARGIN).clamp_min(0)  # a class that is obviously absent costs nothing
        positive = -F.logsigmoid(logits)
        negative = -(absent**_FOCUS) * torch.log((1 - absent).clamp_min(1e-8))
        return torch.where(target > 0, positive, negative)

    def build_metrics(self) -> MultiLabelMetrics:
        """Build loss, mean average precision, F1 and the share of examples with all classes right."""
        return MultiLabelMetrics(self.num_classes)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, (B, C)."""
        return outputs.sigmoid()

    def is_right(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return whether all classes of each example are predicted correctly, at a probability of 0.5."""
        return ((outputs > 0) == (target > 0)).all(1)

    def is_known(self, target: Tensor) -> Tensor:
        """Return which examples have labels."""
        return target[:, 0] >= 0

    def decide(self, outputs: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return 1 for each class whose probability is at least its threshold and 0 for the others, int64, (B, C)."""
        limits = 0.5 if thresholds is None or not len(thresholds) else thresholds.to(outputs)
        return (outputs.sigmoid() >= limits).long()

    def agrees(self, outputs: Tensor, expected: Tensor, tolerance: Tensor) -> Tensor:
        """Return whether each class is predicted alike at 0.5; what lies there within the tolerance is, (B, C)."""
        return ((outputs > 0) == (expected > 0)) | (expected.abs() <= tolerance)

    def example_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy of each example, averaged over the classes, (B,)."""
        return F.binary_cross_entropy_with_logits(outputs, target.to(outputs), reduction="none").mean(1)

    def example_scores(self, outputs: Tensor, target: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Return the F1 of each example over its classes, 1 where none are predicted and it has none, (B,)."""
        return compute_example_f1(self.decide(outputs, thresholds), target)

    def uncertainty(self, outputs: Tensor) -> Tensor:
        """Return the mean entropy of the classes, 1 where each is as likely as not, float64, (B,)."""
        x = outputs.double()
        entropy = -(x.sigmoid() * F.logsigmoid(x) + (-x).sigmoid() * F.logsigmoid(-x))
        return entropy.mean(1) / math.log(2)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return the probability of the predicted set at 0.5, as if classes were independent, (B,)."""
        return F.logsigmoid(outputs.abs()).sum(1).exp()

    def describe_mistake(self, probabilities: Tensor, decided: Tensor, target: Tensor, names: Sequence[str]) -> str:
        """Return the missing and the wrong classes with their probabilities, the worst first."""
        parts = []
        for word, error in (("missing", 1), ("wrong", -1)):
            found = (target - decided == error).nonzero()[:, 0].tolist()
            found.sort(key=lambda k: error * float(probabilities[k]))
            if found:
                parts.append(f"{word}: {', '.join(f'{names[k]} ({float(probabilities[k]):.0%})' for k in found)}")
        return "; ".join(parts)

    def format_code(self, description: str | None) -> list[str]:
        """Return the sigmoid and the threshold of each class."""
        lines = ["probabilities = (1 + np.tanh(logits / 2)) / 2  # the sigmoid of each class"]
        if description is None:
            return [*lines, "print(probabilities[0])"]
        lines.append(f'about = json.load(open("{description}", encoding="utf-8"))')
        lines.append('for name, p, limit in zip(about["class_names"], probabilities[0], about["thresholds"]):')
        return [*lines, '    print(name, p, "yes" if p >= limit else "no")']

    def describe_aim(self) -> str:
        """Return what a classifier is for."""
        return f"find which of {self.num_classes} classes apply"

    def explain_limit(self) -> str:
        """Return what happens to an example of another class."""
        return (
            f"It knows {self.num_classes} classes and no other: what an example shows besides them is not named, and "
            "can raise the probability of a class that it lacks."
        )

    def fit_thresholds(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Choose the thresholds of the best F1."""
        return fit_thresholds(outputs.sigmoid(), target)

    def fit_shared_threshold(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Choose the threshold of the best mean F1 of an example."""
        return fit_shared_threshold(outputs.sigmoid(), target)

    def invert_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return logits of the probability of each class."""
        return to_logits(probabilities, has_sets=True)

    def measure_calibrated(self, outputs: Tensor, target: Tensor, thresholds: Tensor) -> dict[str, float]:
        """Return F1 at the thresholds."""
        decided = self.decide(outputs, thresholds)
        return {
            "threshold_micro_f1": float(compute_f1(decided.view(-1, 1), target.view(-1, 1))),
            "threshold_macro_f1": float(compute_f1(decided, target).mean()),
        }
