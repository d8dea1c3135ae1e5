"""Two views teach one classifier."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers import CoTrainedRegression, LogisticRegression, SmoothedLogisticRegression
from sft_lightning.classifiers.co_trained_regression import SecondView, fit_targets
from sft_lightning.utils.errors import InputError
from tests.classifiers.test_classifiers import blobs


def views(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two views whose noise is independent, and the classes."""
    (first, y), (second, _) = blobs(count, seed=seed, distance=1), blobs(count, seed=seed + 100, distance=1)
    return first, second, y


def fit() -> CoTrainedRegression:
    (x, other, y), (pool, pool_other, _) = views(9, 0), views(300, 1)
    return CoTrainedRegression().fit(x, y, pool, second=SecondView(other, pool_other, False))


def test_targets_are_the_product_of_both_teachers() -> None:
    (x, other, y), (pool, pool_other, _) = views(9, 0), views(300, 1)
    first = SmoothedLogisticRegression().fit(x, y, pool).predict_proba(pool)
    second = LogisticRegression().fit(other, y).predict_proba(pool_other)
    product = first * second / (first * second).sum(1, keepdim=True)
    targets = torch.cat([F.one_hot(y).float(), product])
    weight, bias = fit_targets(torch.cat([x, pool]), targets)
    taught = fit()
    assert torch.allclose(taught.weight, weight, atol=1e-3)
    assert torch.allclose(taught.bias, bias, atol=1e-2)


def test_a_second_view_helps() -> None:
    taught, (new, _, truth) = fit(), views(300, 2)
    (x, _, y), (pool, _, _) = views(9, 0), views(300, 1)
    alone = SmoothedLogisticRegression().fit(x, y, pool)
    right, alone_right = ((model.predict(new) == truth).float().mean() for model in (taught, alone))
    assert right > alone_right + 0.02


@pytest.mark.parametrize("strength", [0.5, None])
def test_hard_targets_give_the_logistic_regression_of_scikit_learn(strength: float | None) -> None:
    x, y = blobs(90, distance=1)
    weight, bias = fit_targets(x, F.one_hot(y).float(), strength, max_iter=500)
    own = LogisticRegression(strength or 4 / x.shape[1]).fit(x, y)
    assert np.allclose(F.linear(x, weight, bias).softmax(1), own.predict_proba(x), atol=1e-3)


def test_counts_of_the_second_view_keep_their_scale() -> None:
    (x, _, y), (pool, _, _) = views(9, 0), views(60, 1)
    counts = torch.poisson(torch.rand(69, 5, generator=torch.Generator().manual_seed(0)) * 3)
    kept, scaled = (
        CoTrainedRegression().fit(x, y, pool, second=SecondView(counts[:9], counts[9:], has_counts)).weight
        for has_counts in (True, False)
    )
    assert not torch.allclose(kept, scaled, atol=1e-3)


def test_what_is_missing_is_named() -> None:
    (x, other, y), (pool, pool_other, _) = views(9, 0), views(30, 1)
    with pytest.raises(InputError, match="learns from unlabeled examples, and the data gives none: add some, or use"):
        CoTrainedRegression().fit(x, y)
    with pytest.raises(InputError, match="needs a second view of 9 labeled and 30 unlabeled examples"):
        CoTrainedRegression().fit(x, y, pool)
    with pytest.raises(InputError, match="needs a second view of 9 labeled and 30 unlabeled examples"):
        CoTrainedRegression().fit(x, y, pool, second=SecondView(other, pool_other[:-1], False))
    with pytest.raises(InputError, match="takes examples of one class each"):
        CoTrainedRegression().fit(x, F.one_hot(y), pool, second=SecondView(other, pool_other, False))
    with pytest.raises(InputError, match="strength"):
        CoTrainedRegression(strength=0)


def test_a_class_without_labels_is_never_predicted() -> None:
    (x, other, y), (pool, pool_other, _) = views(9, 0), views(30, 1)
    taught = CoTrainedRegression().fit(x, 2 * y, pool, 6, SecondView(other, pool_other, False))
    assert set(taught.predict(pool).tolist()) <= {0, 2, 4}
    assert torch.allclose(taught.make_head()(pool).softmax(1), taught.predict_proba(pool), atol=1e-6)
