"""Ridge regression to one-hot labels, in closed form.

Rifkin, Yeo & Poggio 2003, "Regularized Least-Squares Classification".
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers.base import LinearClassifier, choose_temperature, fold_standardization, standardize
from sft_lightning.utils.errors import check_positive

_PENALTIES = torch.logspace(-4, 4, 17, dtype=torch.float64)  # relative to the mean eigenvalue


class Ridge(LinearClassifier):
    """Least squares with an L2 penalty from standardized features to one-hot labels.

    The answers of leave-one-out cross-validation follow from one singular value decomposition. They choose the penalty
    by squared error unless it is given, and the temperature that turns scores into probabilities by log-likelihood.
    """

    def __init__(self, penalty: float | None = None) -> None:
        """Check and store the settings.

        Args:
            penalty: Penalty as a multiple of the features' mean eigenvalue; null to choose it from 1e-4 to 1e4 by
                leave-one-out cross-validation.

        Raises:
            InputError: The penalty is not positive.
        """
        super().__init__()
        if penalty is not None:
            check_positive(penalty=penalty)
        self.penalty = penalty

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scaled, mean, deviation = standardize(x)
        hot = F.one_hot(y).double()
        target = hot - hot.mean(0)
        u, singular, vh = torch.linalg.svd(scaled, full_matrices=False)
        power = singular.square()
        unit = float(power.sum()) / max(1, min(len(x), x.shape[1])) or 1.0
        penalties = _PENALTIES if self.penalty is None else torch.tensor([self.penalty], dtype=torch.float64)

        def leave_one_out(penalty: Tensor) -> Tensor:
            """Return each example's residual if it is left out, (N, K); the intercept takes part (1 / N)."""
            shrink = power / (power + penalty * unit)
            residual = target - u @ (shrink[:, None] * (u.T @ target))
            leverage = (u.square() * shrink).sum(1) + 1 / len(x)
            left_out: Tensor = residual / (1 - leverage).clamp_min(1e-6)[:, None]
            return left_out

        best = min(penalties, key=lambda penalty: float(leave_one_out(penalty).square().sum()))
        weight = ((u.T @ target).T * (singular / (power + best * unit))) @ vh
        temperature = choose_temperature(hot - leave_one_out(best), y)
        return fold_standardization(weight / temperature, hot.mean(0) / temperature, mean, deviation)
