from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.semi_supervised import LabelSpreading as Reference
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers import KNearestNeighbors, LabelSpreading, NearestClassMean
from sft_lightning.classifiers.label_spreading import (
    balance_classes,
    choose_neighbors,
    normalize_graph,
    solve_spreading,
    spread_labels,
)
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import Whitened
from sft_lightning.utils.errors import InputError


def rings(count: int = 150, seed: int = 0, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Two circles, which no linear classifier separates: features (2 count, 2) and classes, the first two of each."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(2 * count, generator=generator) * 2 * torch.pi
    y = torch.arange(2 * count) % 2
    x = torch.stack([angle.cos(), angle.sin()], 1) * (1 + y)[:, None]
    return x + noise * torch.randn(x.shape, generator=generator), y


@pytest.mark.parametrize("alpha", [0.8, 0.99])
def test_scores_equal_those_of_scikit_learn_on_the_same_graph(alpha: float) -> None:
    x, y = rings()
    x = torch.cat([x, x[:3] + 0.01])  # of a third class, whose examples have neighbors of others
    y = torch.cat([y, torch.full((3,), 2)])
    labeled = torch.tensor([0, 1, 2, 3, 300])
    others = torch.tensor([i for i in range(len(y)) if i not in labeled])
    settings: dict[str, Any] = {"neighbors": 7, "alpha": alpha, "metric": "euclidean", "class_weight": "none"}
    ours = LabelSpreading(**settings).fit(x[labeled], y[labeled], x[others])
    order = torch.cat([labeled, others])
    adjacent = np.zeros((len(y), len(y)))
    nearest = find_neighbors(x[order], x[order], 7, exclude_self=True).numpy()
    for i, row in enumerate(nearest):
        adjacent[i, row] = adjacent[row, i] = 1
    theirs = Reference(kernel=lambda a, b: adjacent, alpha=alpha, max_iter=100_000, tol=1e-12)
    theirs.fit(x[order].numpy(), np.concatenate([y[labeled].numpy(), -np.ones(len(others), int)]))
    probabilities = torch.cat([ours.probabilities[: len(labeled)], ours.unlabeled_proba])
    difference = (probabilities - torch.from_numpy(theirs.label_distributions_)).abs().max()
    assert difference < 1e-6


def test_a_class_with_more_labels_takes_in_no_examples_of_others() -> None:
    x, y = rings(noise=0.25)
    labeled = torch.cat([(y == 0).nonzero()[:20, 0], (y == 1).nonzero()[:2, 0]])
    others = torch.tensor([i for i in range(len(y)) if i not in labeled])

    def count_right(weight: Literal["none", "balanced"]) -> float:
        fitted = LabelSpreading(7, metric="euclidean", class_weight=weight).fit(x[labeled], y[labeled], x[others])
        return float((fitted.unlabeled_proba.argmax(1) == y[others]).float().mean())

    assert count_right("balanced") > count_right("none") + 0.1


def test_class_weights_equal_scores_scaled_by_class() -> None:
    x, y = rings(noise=0.25)
    graph = normalize_graph(find_neighbors(x, x, 5, exclude_self=True))
    positions = torch.tensor([0, 1, 2, 4, 6])  # one of class 1
    plain, weighted = (spread_labels(graph, positions, y[positions], 2, 0.9, weighs) for weighs in (False, True))
    both = (plain > 1e-6).all(1) & (plain != 0.5).all(1)  # reached by both classes
    scaled = plain[both] / torch.tensor([4.0, 1.0])
    assert both.sum() > 100
    assert torch.allclose(weighted[both], scaled / scaled.sum(1, keepdim=True), rtol=1e-4)


def test_labels_follow_the_rings_that_the_unlabeled_examples_show() -> None:
    x, y = rings()
    new, truth = rings(40, seed=1)
    fitted = LabelSpreading(neighbors=5, metric="euclidean").fit(x[:2], y[:2], x[2:])
    assert (fitted.unlabeled_proba.argmax(1) == y[2:]).float().mean() > 0.98
    assert (fitted.predict(new) == truth).float().mean() > 0.95
    alone = LabelSpreading(neighbors=1, metric="euclidean").fit(x[:2], y[:2])
    assert (alone.predict(new) == truth).float().mean() < 0.8


def test_probabilities_of_new_examples_are_the_mean_of_their_neighbors() -> None:
    x, y = rings()
    fitted = LabelSpreading(neighbors=5, metric="euclidean").fit(x[:20], y[:20], x[20:])
    new = torch.randn(9, 2)
    nearest = torch.cdist(new, x).topk(5, largest=False).indices
    given = torch.cat([fitted.probabilities[:20], fitted.unlabeled_proba])
    assert torch.allclose(fitted.predict_proba(new), given[nearest].mean(1), atol=1e-6)


def test_classes_solved_for_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = rings()
    y = torch.arange(len(x)) % 5
    full = LabelSpreading().fit(x[:50], y[:50], x[50:]).unlabeled_proba
    monkeypatch.setattr("sft_lightning.classifiers.label_spreading._VALUES", 2 * len(x))
    blocks = LabelSpreading().fit(x[:50], y[:50], x[50:]).unlabeled_proba
    assert torch.allclose(full, blocks, atol=1e-6)


def test_cosine_ignores_the_length_of_features() -> None:
    x, y = rings()
    length = torch.linspace(0.1, 10, len(x))[:, None]
    plain, scaled = (
        LabelSpreading(metric="cosine").fit(v[:40], y[:40], v[40:]).unlabeled_proba
        for v in (F.normalize(x, dim=1), x * length)
    )
    assert (plain - scaled).abs().median() < 1e-5


def test_an_example_that_no_label_reaches_has_equal_probabilities() -> None:
    x, y = rings()
    island = torch.randn(20, 2) + 100
    fitted = LabelSpreading(neighbors=5, metric="euclidean").fit(
        x[:10], y[:10], torch.cat([x[10:], island]), num_classes=3
    )
    assert torch.equal(fitted.unlabeled_proba[-20:], torch.tensor([[0.5, 0.5, 0.0]]).expand(20, 3))
    assert torch.allclose(fitted.unlabeled_proba.sum(1), torch.ones(len(x) + 10))


@pytest.mark.parametrize(("balance", "expected"), [("uniform", [0.5, 0.5]), ("labeled", [0.75, 0.25])])
def test_balance_sets_the_shares_of_the_classes(balance: str, expected: list[float]) -> None:
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    chosen = torch.cat([(y == 0).nonzero()[:6, 0], (y == 1).nonzero()[:2, 0]])
    rest = torch.tensor([i for i in range(len(y)) if i not in chosen])
    fitted = LabelSpreading(balance=balance).fit(x[chosen], y[chosen], x[rest])  # type: ignore[arg-type]
    assert torch.allclose(fitted.unlabeled_proba.mean(0), torch.tensor(expected), atol=1e-3)
    assert torch.allclose(fitted.unlabeled_proba.sum(1), torch.ones(len(rest)), atol=1e-5)


def test_balanced_classes_keep_an_example_of_a_class_with_share_0() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4]])
    balanced = balance_classes(p, torch.tensor([0.0, 0.5, 0.5]))
    assert balanced[0].tolist() == [1, 0, 0]
    assert not balanced[1:, 0].any()


@pytest.mark.parametrize(("count", "classes", "expected"), [(60_000, 10, 15), (120, 3, 10), (30, 10, 3), (3, 2, 2)])
def test_small_classes_get_few_neighbors(count: int, classes: int, expected: int) -> None:
    assert choose_neighbors(count, classes) == expected


def test_the_graph_is_symmetric_without_loops_and_has_1_as_its_largest_eigenvalue() -> None:
    x, _ = rings()
    graph = normalize_graph(find_neighbors(x, x, 6, exclude_self=True)).toarray()
    assert (graph == graph.T).all()
    assert not graph.diagonal().any()
    assert np.linalg.eigvalsh(graph).max() == pytest.approx(1)


def test_copies_of_an_example_are_neighbors_and_it_is_not_its_own() -> None:
    x = torch.cat([torch.zeros(4, 3), torch.ones(2, 3)])
    nearest = find_neighbors(x, x, 3, exclude_self=True)
    assert [sorted(row) for row in nearest[:4].tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_fit_is_the_same_bit_for_bit() -> None:
    x, y = rings()
    first, second = (LabelSpreading().fit(x[:9], y[:9], x[9:]).unlabeled_proba for _ in range(2))
    assert torch.equal(first, second)


def test_a_solution_is_exact_and_one_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = rings()
    graph = normalize_graph(find_neighbors(x, x, 6, exclude_self=True))
    target = np.eye(len(x))[:, :3]
    target[:, 1] = 0  # a class of another block has no label here
    solution = solve_spreading(graph, target, 0.99)
    assert np.allclose(solution, np.linalg.solve(np.eye(len(x)) - 0.99 * graph.toarray(), target), atol=1e-6)
    monkeypatch.setattr("sft_lightning.classifiers.label_spreading._MAX_ITERATIONS", 5)
    with pytest.raises(InputError, match="so close to 1 that"):
        solve_spreading(graph, target, 0.99)


@pytest.mark.parametrize(
    ("settings", "message"), [({"alpha": 1.0}, "alpha is 1.0"), ({"neighbors": 0}, "neighbors is 0")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelSpreading(**settings)  # type: ignore[arg-type]


def test_too_few_examples_for_the_neighbors_are_refused() -> None:
    x, y = rings()
    with pytest.raises(InputError, match="neighbors is 15, but there are only 9 other examples"):
        LabelSpreading(neighbors=15).fit(x[:4], y[:4], x[4:10])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_layer_gives_the_logits_of_the_classifier(metric: Literal["cosine", "euclidean"]) -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 3
    y = torch.arange(12) % 3
    for classifier in (
        LabelSpreading(metric=metric), Whitened(LabelSpreading(metric=metric), 4), Whitened(NearestClassMean(), 4),
    ):  # fmt: skip
        layer = classifier.fit(x[:12], y, x[12:40]).make_layer()
        assert layer is not None
        torch.testing.assert_close(layer(x[40:]), classifier(x[40:]), atol=1e-5, rtol=1e-5)
    assert Whitened(KNearestNeighbors(), 4).fit(x[:12], y, x[12:40]).make_layer() is None
