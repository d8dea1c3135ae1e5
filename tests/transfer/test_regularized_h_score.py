"""The regularized H-score against an independent computation, and where it says more than the H-score."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch.nn import functional as F

from sft_lightning.transfer.scores import h_score, regularized_h_score


@pytest.mark.parametrize(("examples", "width"), [(200, 6), (30, 50)])
def test_regularized_h_score_is_that_of_numpy_and_scikit_learn(examples: int, width: int) -> None:
    draw = np.random.default_rng(examples)
    y = draw.integers(0, 3, examples)
    x = draw.normal(size=(examples, width)) * 3 + y[:, None] * draw.normal(size=width)
    means = np.stack([x[y == c].mean(0) for c in y])
    estimate = LedoitWolf().fit(x)
    between = np.cov(means, rowvar=False, bias=True)
    expected = (1 - estimate.shrinkage_) * np.trace(np.linalg.solve(estimate.covariance_, between))
    found = regularized_h_score(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-6)
    assert regularized_h_score(torch.from_numpy(x * 1e3 + 5), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-6)


def test_regularized_h_score_ranks_where_features_outnumber_examples() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    noise = torch.randn(30, 100, generator=draw)
    clear = noise + 3 * F.one_hot(y, 100)
    assert h_score(noise, y) == pytest.approx(h_score(clear, y))
    assert regularized_h_score(clear, y) > regularized_h_score(noise, y) + 0.1
    assert regularized_h_score(torch.ones(30, 4), y) == 0
