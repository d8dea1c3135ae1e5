import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sft_lightning.transfer.scores import (
    cross_validate,
    h_score,
    leep,
    logme,
    nce,
    regularized_h_score,
    weighted_kendall,
)
from sft_lightning.utils.errors import InputError

Array = NDArray[np.float64]
Case = tuple[Tensor, Tensor, int]
KINDS: list[Literal["knn", "linear"]] = ["knn", "linear"]


def made(counts: list[int], num_features: int, signal: float = 1.0, seed: int = 0) -> Case:
    """Gaussian classes of those sizes, off center and of different scales."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    means = signal * torch.randn(len(counts), num_features, generator=g, dtype=torch.float64)
    features = means[labels] + torch.randn(len(labels), num_features, generator=g, dtype=torch.float64)
    scales = torch.linspace(-1, 1, num_features, dtype=torch.float64).exp()
    order = torch.randperm(len(labels), generator=g)
    return (0.7 + scales * features)[order], labels[order], len(counts)


def duplicated(case: Case) -> Case:
    return torch.cat([case[0], case[0][:, :3]], 1), *case[1:]


def spread(case: Case) -> Case:
    return case[0] * torch.linspace(-4, 4, case[0].shape[1], dtype=torch.float64).exp(), *case[1:]


def single(case: Case) -> Case:
    return case[0].float(), *case[1:]


def constant(case: Case) -> Case:
    return torch.full_like(case[0], 0.1), *case[1:]


CASES = {
    "plain": made([12, 9, 10], 5),
    "no signal": made([12, 9, 10], 5, 0.0),
    "two peaks of the evidence": spread(made([8, 8], 10, 0.5, seed=3)),
    "wide": made([4, 5, 4], 40),
    "square": made([5, 5], 10),
    "duplicate columns": duplicated(made([12, 9, 10], 5)),
    "wide, duplicate columns": duplicated(made([4, 5, 4], 20)),
    "one example": made([12, 1, 10], 5),
    "one example, wide": made([6, 1, 5], 30),
    "no example": made([12, 0, 10], 5),
    "float32": single(made([12, 9, 10], 5)),
    "float32, duplicate columns": single(duplicated(made([12, 9, 10], 5))),
    "constant": constant(made([12, 9, 10], 5)),
    "large": (1e4 * made([12, 9, 10], 5)[0], *made([12, 9, 10], 5)[1:]),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def largest_evidence(x: Array, y: Array) -> float:
    """Log density of y under N(0, I / beta + X X^T / alpha), maximized numerically from the best of many starts."""
    product, count = x @ x.T, len(y)
    product = product / np.trace(product)

    def negative(parameters: Array) -> float:
        alpha, beta = np.exp(parameters)
        covariance = np.eye(count) / beta + product / alpha
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 1e6
        white = np.linalg.solve(root, y)
        return float(count * math.log(2 * math.pi) + 2 * np.log(np.diag(root)).sum() + white @ white) / 2 / count

    bounds = [(-28.0, 28.0), (-28.0, math.log(1e8))]  # the noise's floor
    starts = sorted((np.array([a, b]) for a in (-8, -4, 0, 4, 10) for b in (-1, 3, 8)), key=negative)[:5]
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    return -min(float(minimize(negative, s, bounds=bounds, method="L-BFGS-B", options=options).fun) for s in starts)


@cases
def test_logme_is_the_largest_evidence(case: Case) -> None:
    x, y, num_classes = case[0].double().numpy(), case[1].numpy(), case[2]
    evidences = [largest_evidence(x, (y == c).astype(float)) for c in range(num_classes) if (y == c).any()]
    assert logme(*case) == pytest.approx(np.mean(evidences), rel=1e-5)


def test_logme_by_hand() -> None:
    # X X^T = I: each example has variance 1/alpha + 1/beta, best at the mean square of the 0s and 1s: 2/3 and 1/3
    expected = [-(math.log(2 * math.pi * share) + 1) / 2 for share in (2 / 3, 1 / 3)]
    assert logme(torch.eye(3), torch.tensor([0, 0, 1]), 2) == pytest.approx(sum(expected) / 2, rel=1e-7)


def test_logme_of_an_exact_fit_by_hand() -> None:
    # Class 0 is fit exactly: variance 1e-8 for the second example, 1 for the first. Class 1 is out of the feature's
    # reach: variance 1/2, the mean square, for both.
    exact = -math.log(2 * math.pi) / 2 - math.log(1e-8) / 4 - 1 / 4
    out_of_reach = -math.log(2 * math.pi / 2) / 2 - 1 / 2
    value = logme(torch.tensor([[1.0], [0.0]]), torch.tensor([0, 1]), 2)
    assert value == pytest.approx((exact + out_of_reach) / 2, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e30])
@pytest.mark.parametrize("shape", [(6, 2), (6, 9)])
def test_logme_of_constant_features_is_finite(value: float, shape: tuple[int, int]) -> None:
    score = logme(torch.full(shape, value, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1]), 3)
    nothing_learned = [-(math.log(2 * math.pi * share) + 1) / 2 for share in (2 / 3, 1 / 3)]
    if value == 0:
        assert score == pytest.approx(sum(nothing_learned) / 2, rel=1e-7)
    else:  # the constant learns the share of each class
        assert sum(nothing_learned) / 2 < score < 0


def test_logme_of_one_class_is_finite() -> None:
    assert math.isfinite(logme(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), 2))
    assert math.isfinite(logme(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), 2))


def test_logme_of_separable_classes_is_finite_and_higher() -> None:
    labels = torch.arange(30) % 3
    exact = torch.eye(3)[labels]
    scores = [logme(exact + noise * torch.randn(30, 3, generator=torch.manual_seed(0)), labels, 3) for noise in (1, 0)]
    assert scores[0] < 1 < scores[1] < 20


def test_logme_ignores_rotation_and_scale() -> None:
    x, y, num_classes = CASES["plain"]
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.manual_seed(0), dtype=torch.float64)).Q
    for same in (x @ rotation, 1e6 * x, 1e-6 * x):
        assert logme(same, y, num_classes) == pytest.approx(logme(x, y, num_classes), rel=1e-7)


@cases
def test_h_score_is_the_trace(case: Case) -> None:
    x, y = case[0].double().numpy(), case[1].numpy()
    expected = np.zeros_like(x)
    for c in set(y.tolist()):
        expected[y == c] = x[y == c].mean(0)
    covariance, between = (np.cov(of, rowvar=False) for of in (x, expected))
    trace = np.trace(np.linalg.pinv(covariance, rcond=1e-12) @ between) if x.std(0).max() > 1e-9 else 0
    assert h_score(*case[:2]) == pytest.approx(trace, rel=1e-5)


def test_h_score_by_hand() -> None:
    # mean 3, variance (9 + 1 + 1 + 9) / 4 = 5; class means 1 and 5, variance 4
    assert h_score(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 7, 7])) == pytest.approx(4 / 5)


def test_h_score_ignores_invertible_maps_and_offsets() -> None:
    x, y, _ = CASES["plain"]
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        mapped = x @ torch.randn(5, 5, generator=g, dtype=torch.float64) + 10
        assert h_score(mapped, y) == pytest.approx(h_score(x, y), rel=1e-7)


def test_h_score_takes_no_rounding_for_a_direction() -> None:
    x, y, _ = made([50, 50, 50], 6, 0.3)
    x = x.float() + 5
    dependent = torch.cat([x, x @ torch.randn(6, 40, generator=torch.manual_seed(0))], 1)
    assert torch.linalg.matrix_rank(dependent.double()) > 6
    assert h_score(dependent, y) == pytest.approx(h_score(x, y), rel=1e-4)


def test_h_score_of_few_examples_is_always_the_same() -> None:
    assert h_score(*made([4, 5, 4], 40, 0.0)[:2]) == pytest.approx(2)


def softmaxes(labels: Tensor, num_source: int, signal: float, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(labels), num_source, generator=g, dtype=torch.float64)
    logits[torch.arange(len(labels)), labels % num_source] += signal
    return logits.softmax(1)


def unused(probabilities: Tensor) -> Tensor:
    return torch.cat([probabilities, torch.zeros(len(probabilities), 1)], 1)


LABELS = made([12, 9, 10], 5)[1]
RARE = made([12, 1, 0, 10], 5)[1]


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (softmaxes(LABELS, 7, 2.0), LABELS),
        (softmaxes(LABELS, 2, 0.0), LABELS),
        (softmaxes(RARE, 7, 2.0), RARE),
        (softmaxes(LABELS, 7, 2.0).float(), LABELS),
        (unused(softmaxes(LABELS, 7, 2.0)), LABELS),
    ],
    ids=["plain", "two source classes", "one example, and none", "float32", "a source class of probability 0"],
)
def test_leep_is_the_mean_log_of_the_expected_prediction(probabilities: Tensor, labels: Tensor) -> None:
    theta, y = probabilities.tolist(), labels.tolist()
    sources = [z for z in range(len(theta[0])) if any(row[z] > 0 for row in theta)]
    total = 0.0
    for i in range(len(y)):
        probability = 0.0
        for z in sources:
            joint = sum(theta[j][z] for j in range(len(y)) if y[j] == y[i]) / len(y)
            marginal = sum(theta[j][z] for j in range(len(y))) / len(y)
            probability += joint / marginal * theta[i][z]
        total += math.log(probability)
    assert leep(probabilities, labels, 4) == pytest.approx(total / len(y), rel=1e-5)


def test_leep_by_hand() -> None:
    # P(y|z) is (2/3, 1/3) and (1/4, 3/4); the labels get 0.8 * 2/3 + 0.2 / 4 and 0.4 / 3 + 0.6 * 3/4, both 7/12
    value = leep(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1]), 2)
    assert value == pytest.approx(math.log(7 / 12), rel=1e-6)


def test_leep_of_certain_predictions_is_nce() -> None:
    z = torch.randint(4, LABELS.shape, generator=torch.manual_seed(0))
    assert leep(torch.eye(4)[z], LABELS, 3) == pytest.approx(nce(z, LABELS), rel=1e-12)
    assert leep(torch.eye(3)[LABELS], LABELS, 3) == 0


@pytest.mark.parametrize("labels", [LABELS, RARE], ids=["plain", "one example, and none"])
@pytest.mark.parametrize("num_source", [1, 3, 50])
def test_nce_is_minus_the_conditional_entropy(labels: Tensor, num_source: int) -> None:
    source = torch.randint(num_source, labels.shape, generator=torch.manual_seed(0))
    z, y, total = source.tolist(), labels.tolist(), 0.0
    for a in set(z):
        for b in set(y):
            both = sum(z[i] == a and y[i] == b for i in range(len(y))) / len(y)
            if both:
                total += both * math.log(both / (z.count(a) / len(z)))
    assert nce(source, labels) == pytest.approx(total, rel=1e-5)


def test_nce_by_hand() -> None:
    # source class 0 holds 4 of 6, half of each label; source class 1 has one label only
    value = nce(torch.tensor([0, 0, 0, 0, 9, 9]), torch.tensor([3, 3, 5, 5, 5, 5]))
    assert value == pytest.approx(-2 / 3 * math.log(2))


def test_nce_of_identical_labels_is_0() -> None:
    assert nce(LABELS, LABELS) == 0
    assert nce(2 - LABELS, LABELS) == 0


@pytest.mark.parametrize("score", [logme, lambda x, y, _: h_score(x, y)], ids=["logme", "h_score"])
def test_features_that_tell_the_classes_apart_rank_higher(score: Callable[[Tensor, Tensor, int], float]) -> None:
    values = [score(*made([40, 40, 40], 5, signal)) for signal in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    assert len(set(values)) == 4


def test_predictions_that_tell_the_classes_apart_rank_higher() -> None:
    values = [leep(softmaxes(LABELS, 7, signal), LABELS, 3) for signal in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert len(set(values)) == 4


def test_the_linear_probe_is_scikit_learns() -> None:
    x, y, _ = made([30, 25, 20], 6, 0.5)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    found = cross_val_score(model, x.numpy(), y.numpy(), cv=StratifiedKFold(4, shuffle=True, random_state=3))
    expected = found.mean(), math.sqrt(((found - found.mean()) ** 2).sum() / 3 / 4)
    assert cross_validate(x, y, 4, 3, kind="linear") == pytest.approx(expected)
    assert 0.4 < expected[0] < 0.95


@pytest.mark.parametrize(("counts", "neighbors"), [([30, 25, 20], 5), ([40, 35, 6], 4)])
def test_the_neighbors_are_scikit_learns(counts: list[int], neighbors: int) -> None:
    x, y, _ = made(counts, 6, 0.5)
    model = KNeighborsClassifier(neighbors, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    found = cross_val_score(model, x.numpy(), y.numpy(), cv=StratifiedKFold(3, shuffle=True, random_state=3))
    assert cross_validate(x, y, 3, 3, kind="knn")[0] == pytest.approx(found.mean())
    assert 0.4 < found.mean() < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_separable_classes_are_classified(kind: Literal["knn", "linear"]) -> None:
    labels = torch.arange(30) % 3 + 2
    features = torch.eye(5)[labels] + 0.05 * torch.randn(30, 5, generator=torch.manual_seed(0))
    assert cross_validate(features, labels, kind=kind) == (1.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_labels_are_guessed_at_chance(kind: Literal["knn", "linear"]) -> None:
    g = torch.Generator().manual_seed(0)
    mean, error = cross_validate(torch.randn(400, 4, generator=g), torch.arange(400) % 4, kind=kind)
    assert mean == pytest.approx(0.25, abs=0.07)
    assert 0.002 < error < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_in_one_fold(kind: Literal["knn", "linear"]) -> None:
    labels = (torch.arange(80) % 2).repeat(8)
    features = torch.randn(80, 100, generator=torch.manual_seed(0)).repeat(8, 1)  # more features than examples
    assert cross_validate(features, labels, kind=kind) == (1.0, 0.0)  # the same example is on both sides
    groups = [f"patient {i % 80}" for i in range(640)]
    assert cross_validate(features, labels, groups=groups, kind=kind)[0] == pytest.approx(0.5, abs=0.15)


def test_the_seed_decides_on_the_folds() -> None:
    x, y, _ = made([30, 25, 20], 6, 0.5)
    groups = [str(i // 2) for i in range(75)]
    for known in (None, groups):
        seeds = [cross_validate(x, y, seed=seed, groups=known, kind="knn") for seed in (0, 0, 1, 2)]
        assert seeds[0] == seeds[1]
        assert len(set(seeds)) > 1


@pytest.mark.parametrize(
    ("labels", "folds", "groups", "message"),
    [
        (
            [0, 0, 0, 0, 2, 2, 2],
            4,
            None,
            "class 2 has 3 labeled example(s), fewer than the 4 folds: set folds to 3 or add",
        ),
        (
            [0, 0, 0, 2, 2, 2],
            9,
            None,
            "class 0 has 3 labeled example(s), fewer than the 9 folds: set folds to 3 or add",
        ),
        (
            [0, 0, 0, 1],
            2,
            None,
            "class 1 has 1 labeled example(s), and no cross-validation works with fewer than 2: add",
        ),
        ([0, 0, 0, 1, 1], 1, None, "folds is 1: give a number of at least 2"),
        ([3, 3, 3], 2, None, "all 3 labeled examples are of class 3: add labels of another class"),
        ([], 2, None, "no labeled example"),
        ([0, 0, 0, 0, 1, 1, 1, 1], 3, "abcdeeff", "class 1 has 2 group(s) of labeled examples, fewer than the 3 folds"),
        ([0, 0, 0, 1, 1, 1], 2, "abcddd", "class 1 has 1 group(s) of labeled examples, and no cross-validation works"),
        ([0, 1, 0, 1], 2, "aabc", "a fold would learn from class"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_validated_is_refused(
    labels: list[int], folds: int, groups: str | None, message: str, kind: Literal["knn", "linear"]
) -> None:
    features = torch.randn(len(labels), 3, generator=torch.manual_seed(0))
    with pytest.raises(InputError) as caught:
        cross_validate(features, torch.tensor(labels), folds, groups=groups, kind=kind)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_folds_as_examples_of_the_smallest_class_are_fine(kind: Literal["knn", "linear"]) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert cross_validate(torch.eye(2)[labels], labels, 2, kind=kind) == (1.0, 0.0)


@pytest.mark.parametrize(
    "score",
    [
        lambda x, y: logme(x, y, 2),
        h_score,
        regularized_h_score,
        lambda x, y: leep(x, y, 2),
        lambda x, y: cross_validate(x, y, 2, kind="linear")[0],
    ],
    ids=["logme", "h_score", "regularized_h_score", "leep", "cross_validated"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_must_be_finite_and_some(score: Callable[[Tensor, Tensor], float], value: float) -> None:
    features, labels = torch.rand(6, 2), torch.arange(6) % 2
    features[3, 1] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        score(features, labels)
    with pytest.raises(InputError, match="no labeled example"):
        score(features[:0], labels[:0])


def test_nce_needs_an_example() -> None:
    with pytest.raises(InputError, match="no labeled example"):
        nce(LABELS[:0], LABELS[:0])


def tau(scores: list[float], accuracies: list[float]) -> float:
    """Vigna 2015: pairs that agree less those that do not, weighted by 1 / rank + 1 / rank (from 1, best first).

    The mean of the ranks by the one and by the other.
    """

    def by(first: list[float], second: list[float]) -> float:
        ranks = {i: rank for rank, i in enumerate(sorted(range(len(first)), key=lambda i: (-first[i], -second[i])), 1)}
        agree = same_a = same_b = 0.0
        for i in range(len(first)):
            for j in range(len(first)):
                if i != j:
                    weight = 1 / ranks[i] + 1 / ranks[j]
                    a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
                    agree, same_a, same_b = agree + weight * a * b, same_a + weight * a * a, same_b + weight * b * b
        return agree / math.sqrt(same_a * same_b)

    return (by(scores, accuracies) + by(accuracies, scores)) / 2


def test_weighted_kendall_is_the_weighted_count_of_pairs() -> None:
    g = np.random.default_rng(0)
    for _ in range(10):
        scores, accuracies = g.normal(size=8).tolist(), g.normal(size=8).tolist()
        assert weighted_kendall(scores, accuracies) == pytest.approx(tau(scores, accuracies))


def test_weighted_kendall_by_hand() -> None:
    assert weighted_kendall([1, 2, 3], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert weighted_kendall([1, 2, 3], [0.3, 0.2, 0.1]) == pytest.approx(-1)
    # weights of the pairs of ranks 1-2, 1-3 and 2-3: 3/2, 4/3 and 5/6, together 11/3
    assert weighted_kendall([3, 2, 1], [0.2, 0.3, 0.1]) == pytest.approx(1 - 2 * 3 / 2 / (11 / 3))
    assert weighted_kendall([3, 2, 1], [0.3, 0.1, 0.2]) == pytest.approx(1 - 2 * 5 / 6 / (11 / 3))


@pytest.mark.parametrize(
    ("scores", "accuracies"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 1]), ([1], [1]), ([], [])]
)
def test_weighted_kendall_without_a_ranking_is_0(scores: list[float], accuracies: list[float]) -> None:
    assert weighted_kendall(scores, accuracies) == 0
