"""Nearest class mean, the classifier of prototypical networks.

Mensink et al. 2013, "Distance-Based Image Classification"; Snell et al. 2017, "Prototypical Networks for Few-shot
Learning".
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers.base import LinearClassifier, choose_temperature


class NearestClassMean(LinearClassifier):
    """Class of the nearest mean by Euclidean distance, which is a linear function of the features.

    The logit of the mean m is (m x - |m|^2 / 2) / (s^2 T), with the variance s^2 of a feature within classes. The
    temperature T, which makes up for features that depend on each other, is chosen by the likelihood of examples that
    are left out of their class's mean. With one label per class, s^2 is the variance around the mean of all.
    """

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hot = F.one_hot(y).double()
        counts = hot.sum(0)
        means = (hot.T @ x) / counts[:, None]
        spread = (x - means[y]).square().sum() / (max(1, len(x) - len(means)) * x.shape[1])
        total = (x - x.mean(0)).square().mean()
        variance = spread if float(spread) > 1e-6 * float(total) else total
        if float(variance) <= 1e-12 * float(x.square().mean()):  # all features are equal, up to rounding
            variance = torch.ones_like(total)
        others = counts[y] > 1
        if bool(others.any()):
            distances = torch.cdist(x[others], means).square()
            # Without an example, its class's mean of n examples is farther from it by n / (n - 1).
            away = (counts / (counts - 1).clamp_min(1)).square()
            distances = torch.where(hot[others].bool(), distances * away, distances)
            variance = variance * choose_temperature(-distances / (2 * variance), y[others])
        return means / variance, -means.square().sum(1) / (2 * variance)
