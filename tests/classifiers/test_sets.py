"""Classifiers without gradient steps on examples that have several classes."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression as Plain
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sft_lightning.classifiers import (
    Classifier,
    ComplementNaiveBayes,
    KNearestNeighbors,
    LabelSpreading,
    LogisticRegression,
    NearestClassMean,
    Ridge,
    SmoothedLogisticRegression,
)
from sft_lightning.classifiers.base import LinearClassifier, standardize, to_logits
from sft_lightning.classifiers.label_spreading import (
    choose_neighbors,
    count_effective_classes,
    normalize_graph,
    spread_sets,
)
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import Whitened
from sft_lightning.utils.errors import InputError

SHARES = (0.5, 0.3, 0.15, 0.6)


def draw(count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features of 0 or more that say which of four classes an example has."""
    made = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, 4, generator=made) < torch.tensor(SHARES)).long()
    x = torch.cat([y, 1 - y], 1) + 0.8 * torch.rand(count, 8, generator=made)
    return x, y


KINDS = [
    LogisticRegression(),
    Ridge(),
    NearestClassMean(),
    ComplementNaiveBayes(),
    LabelSpreading(),
    SmoothedLogisticRegression(),
    Whitened(LabelSpreading(), 8),
]


@pytest.mark.parametrize("classifier", KINDS, ids=lambda one: type(one).__name__)
def test_each_class_is_predicted_by_itself_and_the_state_says_so(classifier: Classifier) -> None:
    x, y = draw()
    fitted = classifier.fit(x[:60], y[:60], x[60:180])
    assert fitted.has_sets
    assert fitted.num_classes == 4
    assert fitted.num_labels == 60
    assert fitted.class_counts[:, 1].tolist() == y[:60].sum(0).tolist()
    p = fitted.predict_proba(x[180:])
    torch.testing.assert_close(fitted(x[180:]).sigmoid(), p, atol=2e-6, rtol=0)
    assert all(roc_auc_score(y[180:, k], p[:, k]) > 0.7 for k in range(4))
    assert torch.equal(fitted.predict(x[180:]), (p >= 0.5).long())
    again = {**{type(one).__name__: one for one in KINDS}, "Whitened": Whitened(LabelSpreading(), 8)}
    empty = again[type(classifier).__name__]
    state = {name: value.clone() for name, value in fitted.state_dict().items()}
    empty.load_state_dict(state)
    assert torch.equal(empty.predict_proba(x[180:]), p)
    layer = fitted.make_layer()
    assert layer is not None
    torch.testing.assert_close(layer(x[180:]).sigmoid(), p, atol=1e-5, rtol=0)


def test_logistic_regression_is_one_of_each_class_against_its_absence() -> None:
    x, y = draw(80)
    p = LogisticRegression(strength=0.5).fit(x, y).predict_proba(x)
    scaled = standardize(x.double())[0].numpy()
    for k in range(4):
        expected = Plain(C=0.5, max_iter=1000).fit(scaled, y[:, k].numpy()).predict_proba(scaled)[:, 1]
        torch.testing.assert_close(p[:, k].double(), torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_a_class_that_all_or_none_have_gets_its_odds() -> None:
    x, y = draw(50)
    y[:, 1], y[:, 2] = 1, 0
    for classifier in (LogisticRegression(), ComplementNaiveBayes(), Ridge()):
        assert isinstance(classifier, LinearClassifier)
        p = classifier.fit(x, y).predict_proba(x)
        torch.testing.assert_close(p[:, 1], torch.full((50,), 50.5 / 51))
        torch.testing.assert_close(p[:, 2], torch.full((50,), 0.5 / 51))


def test_spreading_a_class_gives_the_share_of_the_labels_that_have_it() -> None:
    x, y = draw(60)
    graph = normalize_graph(find_neighbors(x, x, 6, exclude_self=True))
    known = torch.arange(0, 60, 2)
    p = spread_sets(graph, known, y[known], 0.9)
    dense = torch.from_numpy(graph.toarray())
    seeds = torch.zeros(60, 5, dtype=torch.float64)
    seeds[known] = torch.cat([y[known], torch.ones(30, 1)], 1).double()
    scores = torch.linalg.solve(torch.eye(60, dtype=torch.float64) - 0.9 * dense, seeds)
    torch.testing.assert_close(p.double(), scores[:, :4] / scores[:, 4:], atol=1e-6, rtol=0)
    weighed = spread_sets(graph, known, y[known], 0.9, weighs_classes=True)
    odds = y[known].double().mean(0)
    odds = odds / (1 - odds)
    torch.testing.assert_close(
        (to_logits(weighed, True)).double(), to_logits(p, True).double() - odds.log(), atol=1e-3, rtol=0
    )


def test_an_example_that_no_label_reaches_gets_the_shares_of_the_labels() -> None:
    x = torch.cat([torch.randn(8, 2), 1000 + torch.randn(8, 2)])
    y = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]])
    graph = normalize_graph(find_neighbors(x, x, 3, exclude_self=True))
    p = spread_sets(graph, torch.arange(4), y)
    assert p[8:].tolist() == [[0.5, 0.25]] * 8


def test_smoothing_divides_by_the_odds_that_both_contain() -> None:
    x, y = draw(100)
    model = SmoothedLogisticRegression(neighbors=5).fit(x[:40], y[:40], x[40:])
    own, near = model.linear.predict_proba(x[40:]), model.average_neighbors(x[40:])
    share = (y[:40].sum(0) + 0.5) / 41
    odds = own / (1 - own) * (near.clamp(1e-6, 1 - 1e-6) / (1 - near.clamp(1e-6, 1 - 1e-6))) * (1 - share) / share
    torch.testing.assert_close(model.predict_proba(x[40:]), odds / (1 + odds), atol=1e-4, rtol=0)


def test_graphs_have_neighbors_by_the_size_of_classes() -> None:
    assert count_effective_classes(torch.tensor([5, 5, 5])) == 3
    counts = torch.tensor([[50, 50], [50, 50], [0, 100], [100, 0]])  # two classes for each example
    assert count_effective_classes(counts) == 2
    assert choose_neighbors(64, count_effective_classes(counts)) == 8


def test_what_does_not_fit_is_refused() -> None:
    x, y = draw(20)
    with pytest.raises(InputError, match="KNearestNeighbors takes examples of one class each, and these have several"):
        KNearestNeighbors().fit(x, y)
    with pytest.raises(InputError, match="labels have 4 columns for 3 classes"):
        LogisticRegression().fit(x, y, num_classes=3)
    with pytest.raises(InputError, match="values other than 0 and 1"):
        LogisticRegression().fit(x, 2 * y)
    with pytest.raises(InputError, match="20 labeled examples all have the same classes"):
        LogisticRegression().fit(x, torch.ones_like(y))
    with pytest.raises(InputError, match="balance is 'uniform', and the examples have several classes"):
        LabelSpreading(balance="uniform").fit(x, y)
