"""Interface of classifiers that are fitted to features in one call, without gradient steps of a network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.heads import NEVER
from sft_lightning.utils.errors import InputError

LEAST = 1e-6  # probability: the logarithm of 0 would make the loss of a single mistake infinite


class FittedModule(nn.Module):
    """Module whose buffers get their shapes when it is fitted; it loads a state of any shape.

    Attributes:
        fitted_buffers: Names of these buffers, which are empty before.
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        """Register the empty buffers."""
        super().__init__()
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.fitted_buffers:
            if isinstance(saved := state_dict.get(prefix + name), Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Classifier(FittedModule, ABC):
    """Classifier of feature vectors, whose state is that of a module.

    A subclass names what it learns in `fitted_buffers`, sets it in `_fit` and uses it in `predict_proba`. Features may
    come from a frozen network, from `WhitenedPCA`, or be the flattened inputs.

    Where examples have several classes, each class is predicted by itself: probabilities are those of a sigmoid.

    Attributes:
        learns_from_unlabeled: Whether `fit` uses unlabeled examples.
        takes_sets: Whether `fit` takes examples of several classes.
        class_counts: Number of labels of each class, int64, (C,); where examples have several classes, how many lack
            and how many have each, (C, 2). Empty before `fit`.
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ("class_counts",)
    learns_from_unlabeled: ClassVar[bool] = False
    takes_sets: ClassVar[bool] = True
    class_counts: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes C; 0 before `fit`."""
        return len(self.class_counts)

    @property
    def has_sets(self) -> bool:
        """Whether the labels were sets of classes, so that each class is predicted by itself."""
        return self.class_counts.ndim == 2

    @property
    def num_labels(self) -> int:
        """Number N of labeled examples."""
        return int(self.class_counts[0].sum() if self.has_sets else self.class_counts.sum())

    def fit(self, x: Tensor, y: Tensor, unlabeled: Tensor | None = None, num_classes: int | None = None) -> Self:
        """Fit the classifier.

        Args:
            x: Features of the labeled examples, floating point, (N, F).
            y: Classes of the labeled examples, int64, (N,), from 0 to C - 1; or 1 for each class of an example and 0
                for the others, (N, C).
            unlabeled: Features of unlabeled examples, (M, F), for classifiers that learn from them.
            num_classes: Number of classes C; None for the largest label + 1. A class without a label is never
                predicted.

        Returns:
            The classifier itself.

        Raises:
            InputError: Fewer than two classes have a label, or all examples the same ones, shapes do not agree, or a
                feature is not finite.
        """
        x, y = x.detach().cpu(), y.detach().cpu()
        unlabeled = x[:0] if unlabeled is None else unlabeled.detach().cpu()
        shapes_agree = x.ndim == unlabeled.ndim == 2 and x.shape[1] == unlabeled.shape[1]
        if not shapes_agree or y.ndim not in (1, 2) or len(y) != len(x):
            raise InputError(
                f"features have the shape {tuple(x.shape)}, labels {tuple(y.shape)}, unlabeled features "
                f"{tuple(unlabeled.shape)}: give (N, F), (N,) or (N, C), and (M, F)"
            )
        if y.ndim == 2:
            self.require_sets()
        counts = count_classes(y, num_classes) if y.ndim == 1 else count_sets(y, num_classes)
        for values in (x, unlabeled):
            check_finite(values)
        self.class_counts = counts
        self._fit(x, y, unlabeled)
        return self

    def require_sets(self) -> None:
        """Check that the classifier takes examples of several classes.

        Raises:
            InputError: It takes examples of one class each.
        """
        if not self.takes_sets:
            raise InputError(
                f"{type(self).__name__} takes examples of one class each, and these have several: use "
                "LogisticRegression, LabelSpreading or SmoothedLogisticRegression"
            )

    @abstractmethod
    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        """Fit the classifier to checked tensors on the CPU.

        Args:
            x: Features of the labeled examples, (N, F).
            y: Classes of the labeled examples, int64, (N,), or 1 for each class of an example and 0 for the others,
                (N, C).
            unlabeled: Features of the unlabeled examples, (M, F); M may be 0.
        """

    @abstractmethod
    def predict_proba(self, x: Tensor) -> Tensor:
        """Return class probabilities, float32, (N, C), on the device of the classifier, after `fit` the CPU.

        Args:
            x: Features, (N, F).
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32, (N, C), on the device of the features.

        Args:
            x: Features, (N, F).
        """
        return to_logits(self.predict_proba(x), self.has_sets).to(x.device)

    def make_layer(self) -> nn.Module | None:
        """Return a fitted module from features to logits that can be written as a program, or None if there is none."""
        return None

    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable classes, int64, (N,), or 1 for each class from 0.5 on and 0 for the others, (N, C).

        Args:
            x: Features, (N, F).
        """
        probabilities = self.predict_proba(x)
        return (probabilities >= 0.5).long() if self.has_sets else probabilities.argmax(1)


class LinearClassifier(Classifier):
    """Classifier whose logits are a linear function of the features, so that it can be the head of a network.

    A subclass writes `_fit_linear`. What it does to the features beforehand, such as standardizing them, is folded into
    weight and bias.

    Attributes:
        weight: Weight, float32, (C, F).
        bias: Bias, float32, (C,).
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = (*Classifier.fitted_buffers, "weight", "bias")
    weight: Tensor
    bias: Tensor

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        if self.has_sets:
            self._fit_each(x.double(), y)
            return
        classes, labels = y.unique(return_inverse=True)
        weight, bias = self._fit_linear(x.double(), labels)
        self.weight = torch.zeros(self.num_classes, x.shape[1])
        self.bias = torch.full((self.num_classes,), NEVER)
        self.weight[classes], self.bias[classes] = weight.float(), bias.float()

    def _fit_each(self, x: Tensor, y: Tensor) -> None:
        """Fit each class against its absence; a class that all or none have gets its odds alone."""
        self.weight = torch.zeros(self.num_classes, x.shape[1])
        self.bias = estimate_odds(self.class_counts)
        for k in (self.class_counts > 0).all(1).nonzero()[:, 0].tolist():
            weight, bias = self._fit_linear(x, y[:, k])
            self.weight[k], self.bias[k] = (weight[1] - weight[0]).float(), (bias[1] - bias[0]).float()

    @abstractmethod
    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight (K, F) and bias (K,) for classes that all have labels.

        Args:
            x: Features, float64, (N, F).
            y: Classes, int64, (N,), from 0 to K - 1.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear function of the features, float32, (N, C)."""
        return F.linear(x.to(self.weight), self.weight, self.bias).to(x.device)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the softmax of the logits, or the sigmoid of each where examples have several classes, (N, C)."""
        logits = self.forward(x.detach())
        return (logits.sigmoid() if self.has_sets else logits.softmax(1)).to(self.weight.device)

    def make_layer(self) -> nn.Module:
        """Return the linear layer."""
        return self.make_head()

    def make_head(self) -> nn.Linear:
        """Return the classifier as a layer, such as the `head` of a paradigm."""
        head = nn.Linear(self.weight.shape[1], self.num_classes)
        head.load_state_dict({"weight": self.weight, "bias": self.bias})
        return head


def count_classes(y: Tensor, num_classes: int | None = None) -> Tensor:
    """Return how many labels each class has, int64, (C,).

    Args:
        y: Classes, int64, (N,).
        num_classes: Number of classes C; None for the largest label + 1.

    Raises:
        InputError: Fewer than two classes have a label, or one is out of range.
    """
    if len(y.unique()) < 2:
        raise InputError(f"{len(y)} labeled examples of {len(y.unique())} class(es): add labels of another class")
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    if int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise InputError(f"labels go from {int(y.min())} to {int(y.max())}: give 0 to {num_classes - 1}")
    return y.bincount(minlength=num_classes)


def count_sets(y: Tensor, num_classes: int | None = None) -> Tensor:
    """Return how many examples lack each class, and how many have it, int64, (C, 2).

    Args:
        y: 1 for each class of an example and 0 for the others, int64, (N, C).
        num_classes: Number of classes C; None for that of the columns.

    Raises:
        InputError: All examples have the same classes, there is another number of columns, or a value is not 0 or 1.
    """
    if num_classes not in (None, y.shape[1]):
        raise InputError(f"labels have {y.shape[1]} columns for {num_classes} classes: give one each")
    if not bool(((y == 0) | (y == 1)).all()):
        raise InputError(
            "labels of several classes have values other than 0 and 1: give 1 for each class of an example"
        )
    counts = torch.stack([(y == 0).sum(0), (y == 1).sum(0)], 1)
    if not bool((counts > 0).all(1).any()):
        raise InputError(f"{len(y)} labeled examples all have the same classes: add others")
    return counts


def estimate_odds(counts: Tensor) -> Tensor:
    """Return the logarithm of the odds of each class among the labels, float32, (C,), which half an example smooths.

    Args:
        counts: How many examples lack and have each class, (C, 2).
    """
    lacking, having = (counts.float() + 0.5).unbind(1)
    return (having / lacking).log()


def to_logits(probabilities: Tensor, has_sets: bool) -> Tensor:
    """Return logits whose softmax, or sigmoid where each class is predicted by itself, are these probabilities.

    Args:
        probabilities: Probabilities, (..., C); nearer than 1e-6 to 0, for a sigmoid also to 1, they count as that.
        has_sets: Whether each class is predicted by itself.
    """
    if not has_sets:
        return probabilities.clamp_min(LEAST).log()
    p = probabilities.clamp(LEAST, 1 - LEAST)
    return p.log() - (1 - p).log()


def check_finite(features: Tensor) -> None:
    """Check that no feature is NaN or infinite.

    Args:
        features: Features of any shape.

    Raises:
        InputError: A feature is not finite.
    """
    if not bool(features.isfinite().all()):
        raise InputError("features hold NaN or infinity: choose a model whose training did not diverge")


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features with mean 0 and standard deviation 1, their means (F,) and their deviations (F,).

    A feature whose deviation is below 1e-6 of the largest one counts as constant and keeps the scale of the data.

    Args:
        x: Features, (N, F).
    """
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
    return (x - mean) / deviation, mean, deviation


def choose_temperature(scores: Tensor, y: Tensor) -> Tensor:
    """Return the temperature from 0.01 to 1,000 at which scores of held-out examples have the highest likelihood.

    Args:
        scores: Scores of examples that were left out, float64, (N, C).
        y: Classes, int64, (N,).
    """
    grid = torch.logspace(-2, 3, 51, dtype=torch.float64)
    losses = torch.stack([F.cross_entropy(scores / temperature, y) for temperature in grid])
    return grid[losses.argmin()]


def fold_standardization(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias for features as they are from those for standardized ones.

    Args:
        weight: Weight, (C, F).
        bias: Bias, (C,).
        mean: Means of the features, (F,).
        deviation: Deviations of the features, (F,).
    """
    folded = weight / deviation
    return folded, bias - folded @ mean
