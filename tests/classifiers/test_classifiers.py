import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference, Ridge as ReferenceRidge
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import classifiers
from sft_lightning.classifiers import (
    Classifier,
    ComplementNaiveBayes,
    CoTrainedRegression,
    KNearestNeighbors,
    LabelSpreading,
    LinearClassifier,
    LogisticRegression,
    NearestClassMean,
    Ridge,
    SmoothedLogisticRegression,
)
from sft_lightning.classifiers.base import choose_temperature
from sft_lightning.utils.errors import InputError

LINEAR = [LogisticRegression(), NearestClassMean(), Ridge()]
ALL = [*LINEAR, KNearestNeighbors(), LabelSpreading(neighbors=10), SmoothedLogisticRegression(neighbors=10)]


def blobs(count: int = 60, classes: int = 3, seed: int = 0, distance: float = 4.0) -> tuple[Tensor, Tensor]:
    """Normal distributions around fixed centers, with features of different scales."""
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(7)) * distance
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = centers[y] + torch.randn(count, 6, generator=generator)
    return x * torch.tensor([1, 1, 2, 2, 0.5, 1]) + 3, y


def test_all_classifiers_are_tested() -> None:
    others = [ComplementNaiveBayes(), CoTrainedRegression()]  # which take counts alone, and a second view
    named = {type(classifier).__name__ for classifier in [*ALL, *others]}
    assert named == set(classifiers.__all__)


@pytest.mark.parametrize("classes", [2, 4])
def test_naive_bayes_is_that_of_scikit_learn_and_takes_counts_alone(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % classes
    x = torch.poisson(torch.rand(classes, 12, generator=generator)[y] * 3, generator=generator)
    expected = ComplementNB(alpha=0.5).fit(x.numpy(), y.numpy())
    ours = ComplementNaiveBayes(smoothing=0.5).fit(x, y * 2, num_classes=2 * classes)
    assert np.allclose(ours.predict_proba(x)[:, ::2].numpy(), expected.predict_proba(x.numpy()), atol=1e-4)
    assert torch.equal(ours.predict(x), torch.from_numpy(expected.predict(x.numpy())) * 2)
    with pytest.raises(InputError, match="ComplementNaiveBayes needs counts, and some features are negative"):
        ComplementNaiveBayes().fit(x - 1, y)


def test_logistic_regression_leaves_the_scale_of_features_if_it_is_to() -> None:
    x, y = blobs(60, distance=1.0)
    expected = Reference(C=10, max_iter=1000).fit(x.double().numpy(), y.numpy())
    ours = LogisticRegression(strength=10, standardize=False).fit(x, y).predict_proba(x)
    assert np.allclose(ours.numpy(), expected.predict_proba(x.double().numpy()), atol=1e-3)


@pytest.mark.parametrize("classifier", ALL, ids=lambda c: type(c).__name__)
def test_classes_that_are_apart_are_separated(classifier: Classifier) -> None:
    (x, y), (new, truth) = blobs(30), blobs(90, seed=1)
    assert classifier.fit(x, y, new[:60]) is classifier
    probabilities = classifier.predict_proba(new)
    assert probabilities.shape == (90, 3)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(90), atol=1e-5)
    assert (classifier.predict(new) == truth).float().mean() > 0.95


@pytest.mark.parametrize("classifier", ALL, ids=lambda c: type(c).__name__)
def test_a_class_without_labels_is_never_predicted(classifier: Classifier) -> None:
    x, y = blobs(30)
    classifier.fit(x, y * 2, num_classes=6)  # the classes 0, 2, 4
    probabilities = classifier.predict_proba(x)
    assert probabilities.shape == (30, 6)
    assert probabilities[:, [1, 3, 5]].max() < 1e-6
    assert (classifier.predict(x) == y * 2).float().mean() > 0.95


@pytest.mark.parametrize("classifier", ALL, ids=lambda c: type(c).__name__)
def test_one_label_of_each_class_is_enough(classifier: Classifier) -> None:
    x, y = blobs(3)
    new, truth = blobs(60, seed=1)
    assert (classifier.fit(x, y, new).predict(new) == truth).float().mean() > 0.9
    assert classifier.predict_proba(new).isfinite().all()


@pytest.mark.parametrize("classifier", LINEAR, ids=lambda c: type(c).__name__)
def test_a_linear_classifier_is_a_layer_that_gives_the_same(classifier: LinearClassifier) -> None:
    x, y = blobs(30)
    head = classifier.fit(x, y).make_head()
    with torch.no_grad():
        assert torch.allclose(head(x).softmax(1), classifier.predict_proba(x), atol=1e-5)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"weight": (3, 6), "bias": (3,)}


@pytest.mark.parametrize("classifier", LINEAR, ids=lambda c: type(c).__name__)
def test_constant_and_equal_features_are_no_obstacle(classifier: LinearClassifier) -> None:
    x, y = blobs(30)
    x[:, 0] = 5
    assert (classifier.fit(x, y).predict(x) == y).float().mean() > 0.9
    assert classifier.fit(torch.ones(30, 6), y).predict_proba(x).isfinite().all()


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_that_of_scikit_learn_on_standardized_features(classes: int) -> None:
    x, y = blobs(60, classes, distance=1.0)
    expected = make_pipeline(StandardScaler(), Reference(C=0.3, max_iter=1000)).fit(x.double().numpy(), y.numpy())
    ours = LogisticRegression(strength=0.3).fit(x, y).predict_proba(x)
    assert np.allclose(ours.numpy(), expected.predict_proba(x.double().numpy()), atol=1e-4)


def test_the_default_penalty_of_logistic_regression_grows_with_the_number_of_features() -> None:
    x, y = blobs(60, distance=1.0)
    wide = x.repeat(1, 4)  # the same examples, whose squared length is four times as large
    default = LogisticRegression().fit(x, y).predict_proba(x)
    assert torch.allclose(LogisticRegression().fit(wide, y).predict_proba(wide), default, atol=3e-3)
    assert torch.equal(LogisticRegression(30 / x.shape[1]).fit(x, y).predict_proba(x), default)
    given = LogisticRegression(1.0)
    assert not torch.allclose(given.fit(wide, y).predict_proba(wide), given.fit(x, y).predict_proba(x), atol=0.03)


def test_ridge_chooses_its_penalty_by_leaving_each_example_out() -> None:
    x, y = blobs(24, distance=1.0)
    z = StandardScaler().fit_transform(x.double().numpy())
    hot = F.one_hot(y).double().numpy()
    unit = float((z**2).sum()) / 6
    errors, scores = {}, {}
    for penalty in np.logspace(-4, 4, 17):
        left_out = np.zeros_like(hot)
        for i in range(len(z)):
            keep = np.arange(len(z)) != i
            left_out[i] = ReferenceRidge(penalty * unit).fit(z[keep], hot[keep]).predict(z[i : i + 1])[0]
        errors[penalty], scores[penalty] = ((hot - left_out) ** 2).sum(), left_out
    best = min(errors, key=lambda penalty: errors[penalty])
    assert min(errors) < best < max(errors)
    model = ReferenceRidge(best * unit).fit(z, hot)
    temperature = float(choose_temperature(torch.from_numpy(scores[best]), y))
    expected = torch.from_numpy(model.predict(z) / temperature).softmax(1)
    assert torch.allclose(Ridge().fit(x, y).predict_proba(x).double(), expected, atol=1e-4)
    other = Ridge(penalty=float(max(errors))).fit(x, y).predict_proba(x)
    assert not torch.allclose(other.double(), expected, atol=1e-2)


def test_nearest_class_mean_is_the_nearest_and_has_probabilities_of_the_left_out_likelihood() -> None:
    x, y = blobs(60, distance=0.7)
    new, truth = blobs(3000, seed=1, distance=0.7)
    fitted = NearestClassMean().fit(x, y)
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    assert torch.equal(fitted.predict(new), torch.cdist(new, means).argmin(1))
    loss = F.nll_loss(fitted.predict_proba(new).log(), truth)
    hotter, colder = (F.cross_entropy(fitted.make_head()(new) * factor, truth) for factor in (0.4, 2.5))
    assert loss < min(hotter, colder)


def test_neighbors_vote_with_their_similarity_and_no_class_outvotes_a_smaller_one() -> None:
    x = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]]), dim=1)
    y = torch.tensor([0, 0, 1, 1, 1])
    query = F.normalize(torch.tensor([[1.0, 0.6]]), dim=1)
    fitted = KNearestNeighbors(neighbors=20, temperature=0.5).fit(x, y)
    cosine = (query @ x.T)[0].topk(2)  # as many as the smallest class has
    votes = torch.zeros(2).scatter_add(0, y[cosine.indices], (cosine.values / 0.5).exp())
    assert torch.allclose(fitted.predict_proba(query * 3)[0], votes / votes.sum())


@pytest.mark.parametrize(
    ("x", "y", "unlabeled", "classes", "message"),
    [
        (torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), None, None, r"4 labeled examples of 1 class"),
        (torch.randn(0, 2), torch.zeros(0, dtype=torch.int64), None, None, r"0 labeled examples of 0 class"),
        (torch.randn(2, 2), torch.tensor([0, 3]), None, 3, "labels go from 0 to 3: give 0 to 2"),
        (torch.randn(2, 2), torch.tensor([-1, 1]), None, None, "labels go from -1 to 1"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), None, None, "NaN or infinity"),
        (torch.randn(2, 1), torch.tensor([0, 1]), torch.tensor([[torch.inf]]), None, "NaN or infinity"),
        (torch.randn(2, 3), torch.tensor([0, 1]), torch.randn(4, 2), None, r"unlabeled features \(4, 2\)"),
        (torch.randn(3, 3), torch.tensor([0, 1]), None, None, r"labels \(2,\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    x: Tensor, y: Tensor, unlabeled: Tensor | None, classes: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Ridge().fit(x, y, unlabeled, classes)


@pytest.mark.parametrize("make", [lambda: Ridge(0), lambda: LogisticRegression(0), lambda: KNearestNeighbors(0)])
def test_settings_out_of_range_are_refused(make: type[Classifier]) -> None:
    with pytest.raises(InputError, match="is 0"):
        make()


def test_few_labels_of_many_classes_are_learned_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    x = torch.randn(40, 4)
    LogisticRegression().fit(x, torch.arange(40) % 30, num_classes=30)
    assert not recwarn.list
