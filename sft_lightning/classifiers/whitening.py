"""Whitened principal components of inputs or features, the space in which graphs on pixels work best."""

from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from sft_lightning.classifiers.base import Classifier, FittedModule, check_finite
from sft_lightning.utils.errors import InputError, check_min

_RELATIVE, _ROUNDING = 1e-10, 1e-14  # a component of less variance, relative to the first or the mean, is rounding
MAX_WHITENED, MAX_UNWHITENED = 60_000, 20_000  # examples of a graph: more would take longer than a short training
_BATCH = 4096  # vectors that are added to the covariance at a time
MAX_FEATURES = 8192  # whose covariance takes half a gigabyte
_ITERATED, _ITERATED_SHARE = 2048, 10  # features, and features for each component, from which iterations pay
COMPONENTS = 128  # of the features of a network, by which a graph joins neighbors best


def suits_whitening(x: Tensor, components: int = COMPONENTS) -> bool:
    """Return whether there are 10 examples for each component, and not too many features.

    Args:
        x: Vectors, (N, F).
        components: Number of components.
    """
    return len(x) >= 10 * components and x.shape[1] <= MAX_FEATURES


class WhitenedPCA(FittedModule):
    """Map vectors to their first principal components, each with variance 1.

    There is at most one component for each 10 examples: whitening few examples makes all their distances equal.

    The covariance is added up batch by batch in float64, so that memory depends on the number of features alone. Of
    fewer examples than features, the products of the examples with each other are decomposed instead.

    Attributes:
        mean: Mean of the vectors, float32, (F,).
        projection: Projection, float32, (F, K); K is below `components` where the vectors have a lower rank.
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ("mean", "projection")
    mean: Tensor
    projection: Tensor

    def __init__(self, components: int = 64) -> None:
        """Check and store the setting.

        Args:
            components: Number of components, at most.

        Raises:
            InputError: The number is below 1.
        """
        super().__init__()
        check_min(1, components=components)
        self.components = components

    def fit(self, batches: Iterable[Tensor]) -> Self:
        """Compute the mean and the components.

        Args:
            batches: Vectors, each batch (B, F).

        Returns:
            The object itself.

        Raises:
            InputError: There are too few examples or too many features, all are equal, or one is not finite.
        """
        count, origin, total, product = 0, torch.empty(0), torch.empty(0), torch.empty(0)
        waiting: list[Tensor] = []  # as long as there are fewer examples than features
        for batch in batches:
            check_finite(batch)
            if batch.shape[1] > MAX_FEATURES:
                raise InputError(
                    f"principal components of {batch.shape[1]} values take too much memory: give at most "
                    f"{MAX_FEATURES}, such as smaller inputs or the features of a network"
                )
            x = batch.detach().cpu().double()
            if not count:  # sums are taken from near the mean, so that they do not cancel
                origin = x.mean(0)
                total = torch.zeros_like(origin)
            x = x - origin
            count, total = count + len(x), total + x.sum(0)
            waiting.append(x)
            if count >= x.shape[1]:
                product = x.new_zeros(x.shape[1], x.shape[1]) if not len(product) else product
                for one in waiting:
                    product.addmm_(one.T, one)
                waiting.clear()
        if count < 2:
            raise InputError(f"principal components need at least 2 examples, not {count}: add examples")
        offset = total / count
        most = min(self.components, max(2, count // 10))
        if len(product):
            variances, vectors = _decompose(product / count - offset[:, None] * offset, most)
        else:
            variances, vectors = _decompose_few(torch.cat(waiting) - offset, most)
        mean = origin + offset
        kept = variances > torch.maximum(_RELATIVE * variances[0], _ROUNDING * mean.square().sum())
        if not bool(kept.any()):
            raise InputError("all examples are equal, so that they have no principal components: add others")
        self.mean = mean.float()
        self.projection = (vectors[:, kept] / variances[kept].sqrt()).float()
        return self

    def transform(self, x: Tensor) -> Tensor:
        """Return the components of vectors, float32, (N, K), on the device of the module, after `fit` the CPU.

        Args:
            x: Vectors, (N, F).
        """
        return (x.detach().to(self.mean) - self.mean) @ self.projection


def _decompose(covariance: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of a symmetric matrix, falling, (K,), and their vectors, (F, K).

    Where few of many are asked for, Lanczos iterations find them in a quarter of the time (64 of 3,072: 4 s of a core).
    """
    size = len(covariance)
    if size >= _ITERATED and _ITERATED_SHARE * most <= size:
        from scipy.sparse.linalg import ArpackError, eigsh

        try:  # always from the same vector, so that the result is the same
            values, vectors = eigsh(covariance.numpy(), most, v0=covariance.diagonal().clamp_min(0).sqrt().numpy())
            return torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)
        except ArpackError:  # does not converge, or all examples are equal
            pass
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0)[:most], vectors.flip(1)[:, :most]


def _decompose_few(centered: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the variances and vectors of `_decompose`, by way of the examples' products with each other.

    Args:
        centered: Vectors of mean 0, (N, F).
        most: Number of components.
    """
    values, examples = _decompose(centered @ centered.T / len(centered), most)
    scale = (values * len(centered)).clamp_min(torch.finfo(values.dtype).tiny).rsqrt()
    return values, centered.T @ examples * scale


class Whitened(Classifier):
    """Classifier of the whitened principal components of all examples, labeled and unlabeled.

    The components are a linear function of the features, so that a linear classifier of them is one of the features.

    Attributes:
        whitening: Components.
        classifier: Classifier of the components.
    """

    learns_from_unlabeled: ClassVar[bool] = True

    def __init__(self, classifier: Classifier, components: int = 64) -> None:
        """Join the two.

        Args:
            classifier: Classifier of the components.
            components: Number of components, at most.

        Raises:
            InputError: The number is below 1.
        """
        super().__init__()
        self.whitening, self.classifier = WhitenedPCA(components), classifier

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        transform = self.whitening.fit(torch.cat([x, unlabeled]).split(_BATCH)).transform
        self.classifier.fit(transform(x), y, transform(unlabeled), self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classifier, float32, (N, C), on the device of the features."""
        logits: Tensor = self.classifier(self.whitening.transform(x))
        return logits.to(x.device)

    def make_layer(self) -> nn.Module | None:
        """Return the components and the layer of the classifier, or None if it has none."""
        layer = self.classifier.make_layer()
        return None if layer is None else _WhitenedLayer(self.whitening, layer)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the probabilities of the classifier, float32, (N, C)."""
        return self.classifier.predict_proba(self.whitening.transform(x))


class _WhitenedLayer(nn.Module):
    """The components, and a layer of them."""

    def __init__(self, whitening: WhitenedPCA, layer: nn.Module) -> None:
        super().__init__()
        self.whitening, self.layer = whitening, layer

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.whitening.transform(x))
        return logits
