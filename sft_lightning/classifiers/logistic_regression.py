"""Logistic regression on frozen features, the linear probe of most papers (scikit-learn's L-BFGS)."""

import warnings

import torch
from torch import Tensor

from sft_lightning.classifiers.base import LinearClassifier, fold_standardization, standardize
from sft_lightning.utils.errors import check_positive

_STRENGTH = 30.0  # of standardized examples that are scaled to a mean squared length of 1


def make_logistic_regression(has_counts: bool) -> "LogisticRegression":
    """Return logistic regression as it suits some features.

    Args:
        has_counts: Whether they are counts or weights of what the inputs consist of, such as words.
    """
    return LogisticRegression(strength=10, standardize=False) if has_counts else LogisticRegression()


class LogisticRegression(LinearClassifier):
    """Multinomial logistic regression on standardized features with an L2 penalty.

    Features are standardized by the labeled examples, since the penalty depends on their scale. It also depends on
    their number, which is the mean squared length of a standardized example, so the default divides by it: with 1,000
    labels and 2,048 features it gains one point over a strength of 1 (`scripts/bench/penalties.py`).
    """

    def __init__(self, strength: float | None = None, max_iter: int = 1000, standardize: bool = True) -> None:
        """Check and store the settings.

        Args:
            strength: Inverse of the L2 penalty (scikit-learn's C); null for 30 divided by the number of features.
            max_iter: Number of iterations of L-BFGS, at most.
            standardize: Whether to standardize the features; false for weights of words, whose scale has a meaning.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(strength=strength, max_iter=max_iter)
        self.strength, self.max_iter, self.standardize = strength, max_iter, standardize

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        from sklearn.linear_model import LogisticRegression as Model

        unchanged = x, torch.zeros_like(x[0]), torch.ones_like(x[0])
        scaled, mean, deviation = standardize(x) if self.standardize else unchanged
        strength = _STRENGTH / x.shape[1] if self.strength is None else self.strength
        with warnings.catch_warnings():  # which takes few labels of many classes for a regression
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
            model = Model(C=strength, max_iter=self.max_iter).fit(scaled.numpy(), y.numpy())
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes, scikit-learn keeps the difference
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return fold_standardization(weight, bias, mean, deviation)
