"""Logistic regression that two views of the unlabeled examples teach, such as features of a network and words."""

from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers.base import LinearClassifier, fold_standardization, standardize
from sft_lightning.classifiers.logistic_regression import LogisticRegression, make_logistic_regression
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.smoothed_regression import NEIGHBORS, multiply, smooth_from
from sft_lightning.utils.errors import InputError, check_positive

_STRENGTH = 4.0  # of standardized examples that are scaled to a mean squared length of 1


class SecondView(NamedTuple):
    """Another kind of features of the same examples.

    Attributes:
        labeled: Features of the labeled examples, (N, G).
        unlabeled: Features of the unlabeled examples, (M, G).
        has_counts: Whether they are counts or weights of what the inputs consist of, such as words.
    """

    labeled: Tensor
    unlabeled: Tensor
    has_counts: bool


class CoTrainedRegression(LinearClassifier):
    """Logistic regression on labels, and on what two views say of each unlabeled example.

    Each view has a teacher that is fitted to the labels: on the features, logistic regression that is smoothed over the
    50 nearest examples (`SmoothedLogisticRegression`), and on the second view, logistic regression. The normalized
    product of their probabilities is the target of an unlabeled example, and logistic regression on the features
    learns all targets. Views that err on different examples teach each other: co-training (Blum & Mitchell 1998,
    "Combining Labeled and Unlabeled Data with Co-Training"), here in one round and with all examples, and the product
    of experts of Hinton 2002. The second view is needed for training alone.

    Attributes:
        second_view: Backbone without weights that gives the second view.
    """

    learns_from_unlabeled: ClassVar[bool] = True
    takes_sets: ClassVar[bool] = False

    def __init__(self, second_view: str = "tfidf", strength: float | None = None, max_iter: int = 100) -> None:
        """Check and store the settings.

        Args:
            second_view: Backbone without weights that gives the second view, such as `tfidf` for the words of texts.
            strength: Inverse of the L2 penalty on the classifier that learns from both (scikit-learn's C); null for 4
                divided by the number of features.
            max_iter: Number of iterations of L-BFGS, at most.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(strength=strength, max_iter=max_iter)
        self.second_view, self.strength, self.max_iter = second_view, strength, max_iter
        self._second: SecondView | None = None

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        unlabeled: Tensor | None = None,
        num_classes: int | None = None,
        second: SecondView | None = None,
    ) -> Self:
        """Fit the classifier.

        Args:
            x: Features of the labeled examples, floating point, (N, F).
            y: Classes of the labeled examples, int64, (N,), from 0 to C - 1.
            unlabeled: Features of the unlabeled examples, (M, F).
            num_classes: Number of classes C; None for the largest label + 1.
            second: Second view of the same examples.

        Returns:
            The classifier itself.

        Raises:
            InputError: Unlabeled examples or their second view are missing, fewer than two classes have a label, shapes
                do not agree, or a feature is not finite.
        """
        if unlabeled is None or not len(unlabeled):
            raise InputError(
                "CoTrainedRegression learns from unlabeled examples, and the data gives none: add some, or use "
                "LogisticRegression"
            )
        if second is None or (len(second.labeled), len(second.unlabeled)) != (len(x), len(unlabeled)):
            raise InputError(
                f"CoTrainedRegression needs a second view of {len(x):,} labeled and {len(unlabeled):,} unlabeled "
                "examples: give their features as `second`"
            )
        self._second = second
        try:
            return super().fit(x, y, unlabeled, num_classes)
        finally:
            self._second = None

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        assert self._second is not None
        linear = LogisticRegression().fit(x, y, num_classes=self.num_classes)
        votes = smooth_from(linear, y, unlabeled)
        other = make_logistic_regression(self._second.has_counts)
        other.fit(self._second.labeled, y, num_classes=self.num_classes)
        nearest = find_pool_neighbors(x, unlabeled)
        taught = make_targets(linear, votes, nearest, other.predict_proba(self._second.unlabeled))
        every, targets = torch.cat([x, unlabeled]), torch.cat([votes[: len(y)], taught])
        self.weight, self.bias = fit_targets(every, targets, self.strength, self.max_iter)

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("targets are probabilities: see fit_targets")


def find_pool_neighbors(x: Tensor, unlabeled: Tensor) -> Tensor:
    """Return the positions of the nearest examples of each unlabeled one, among labeled and unlabeled ones, (M, k).

    Args:
        x: Features of the labeled examples, which come first, (N, F).
        unlabeled: Features of the unlabeled examples, (M, F).
    """
    every = F.normalize(torch.cat([x, unlabeled]).float(), dim=1)
    return find_neighbors(every[len(x) :], every, max(1, min(NEIGHBORS, len(every) // 2)))


def make_targets(linear: LogisticRegression, votes: Tensor, nearest: Tensor, second: Tensor) -> Tensor:
    """Return what both views teach of the unlabeled examples, float32, (M, C).

    Args:
        linear: Logistic regression on the first view.
        votes: Class probabilities of all examples on the first view, those of unlabeled ones last, (N + M, C).
        nearest: Neighbors of each unlabeled example among all, (M, k).
        second: Class probabilities of the unlabeled examples on the second view, (M, C).
    """
    total = torch.zeros_like(second)
    for column in nearest.T:  # one after the other: (M, k, C) might not fit
        total += votes[column]
    smoothed = multiply(votes[-len(nearest) :], total / nearest.shape[1], linear)
    return multiply(smoothed, second, linear)


def fit_targets(
    x: Tensor, targets: Tensor, strength: float | None = None, max_iter: int = 100
) -> tuple[Tensor, Tensor]:
    """Return weight, float32, (C, F), and bias, (C,), of logistic regression whose targets are probabilities.

    Args:
        x: Features, (N, F).
        targets: Class probabilities, (N, C).
        strength: Inverse of the L2 penalty; None for 4 divided by the number of features.
        max_iter: Number of iterations of L-BFGS, at most.
    """
    scaled, mean, deviation = standardize(x.float())
    penalty = x.shape[1] / _STRENGTH if strength is None else 1 / strength
    weight = torch.zeros(targets.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled, weight, bias), targets)
        loss = loss + penalty / (2 * len(x)) * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(evaluate)
    return fold_standardization(weight.detach(), bias.detach(), mean, deviation)
