import pytest
import torch
from torch.nn import functional as F

from sft_lightning.classifiers import LogisticRegression, SmoothedLogisticRegression
from tests.classifiers.test_classifiers import blobs


def fit() -> tuple[SmoothedLogisticRegression, torch.Tensor, torch.Tensor]:
    (x, y), (pool, _), (new, truth) = (
        blobs(9, distance=1),
        blobs(300, seed=1, distance=1),
        blobs(90, seed=2, distance=1),
    )
    return SmoothedLogisticRegression(neighbors=20).fit(x, y, pool), new, truth


def test_probabilities_are_those_of_the_formula() -> None:
    smoothed, new, _ = fit()
    (x, y), (pool, _) = blobs(9, distance=1), blobs(300, seed=1, distance=1)
    linear = LogisticRegression().fit(x, y)
    votes = torch.cat([F.one_hot(y).float(), linear.predict_proba(pool)])
    cosine = F.normalize(new, dim=1) @ F.normalize(torch.cat([x, pool]), dim=1).T
    expected = linear.predict_proba(new) * votes[cosine.topk(20, 1).indices].mean(1)
    expected /= expected.sum(1, keepdim=True)
    assert torch.allclose(smoothed.predict_proba(new), expected, atol=1e-4)
    assert torch.equal(smoothed.unlabeled_proba, votes[9:])


def test_unlabeled_neighbors_help() -> None:
    smoothed, new, truth = fit()
    alone = smoothed.linear.predict(new)
    assert (smoothed.predict(new) == truth).float().mean() > (alone == truth).float().mean()


def test_the_layer_of_a_program_answers_the_same() -> None:
    smoothed, new, _ = fit()
    assert torch.allclose(smoothed.make_layer()(new).softmax(1), smoothed.predict_proba(new), atol=1e-4)


@pytest.mark.parametrize(("count", "expected"), [(300, 50), (20, 14)])
def test_few_examples_have_fewer_neighbors(count: int, expected: int) -> None:
    x, y = blobs(9)
    assert SmoothedLogisticRegression().fit(x, y, blobs(count)[0]).num_neighbors == expected


def test_it_loads_its_state() -> None:
    smoothed, new, _ = fit()
    loaded = SmoothedLogisticRegression(neighbors=20)
    loaded.load_state_dict(smoothed.state_dict())
    assert torch.equal(loaded.predict_proba(new), smoothed.predict_proba(new))
