"""Logistic regression on frozen features, the linear probe of most papers (scikit-learn's L-BFGS)."""

import torch
from torch import Tensor

from sft_lightning.classifiers.base import LinearClassifier, fold_standardization, standardize
from sft_lightning.utils.errors import check_positive


class LogisticRegression(LinearClassifier):
    """Multinomial logistic regression on standardized features with an L2 penalty.

    Features are standardized by the labeled examples, since the penalty depends on their scale.
    """

    def __init__(self, strength: float = 1.0, max_iter: int = 1000) -> None:
        """Check and store the settings.

        Args:
            strength: Inverse of the L2 penalty (scikit-learn's C).
            max_iter: Number of iterations of L-BFGS, at most.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(strength=strength, max_iter=max_iter)
        self.strength, self.max_iter = strength, max_iter

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        from sklearn.linear_model import LogisticRegression as Model

        scaled, mean, deviation = standardize(x)
        model = Model(C=self.strength, max_iter=self.max_iter).fit(scaled.numpy(), y.numpy())
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes, scikit-learn keeps the difference
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return fold_standardization(weight, bias, mean, deviation)
