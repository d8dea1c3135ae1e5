import pytest
import torch
from sklearn.decomposition import PCA

from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.utils.errors import InputError


def test_components_are_those_of_scikit_learn_whatever_the_batches() -> None:
    x = torch.randn(300, 9) @ torch.randn(9, 9) + 1000
    expected = torch.from_numpy(PCA(4, whiten=True).fit_transform(x.double().numpy()))
    for size in (7, 300):
        components = WhitenedPCA(4).fit(x.split(size)).transform(x).double()
        components = components * (300 / 299) ** -0.5  # scikit-learn divides by N - 1
        signs = (components * expected).sum(0).sign()
        assert torch.allclose(components * signs, expected, atol=1e-2)
        assert torch.allclose(components.var(0, correction=0), torch.full((4,), 299 / 300).double(), atol=1e-3)


@pytest.mark.parametrize("size", [7, 40, 80])
def test_fewer_examples_than_features_have_the_same_components(size: int) -> None:
    x = torch.randn(80, 6) @ torch.randn(6, 90) + torch.randn(80, 90) / 10 + 100
    expected = torch.from_numpy(PCA(6, whiten=True).fit_transform(x.double().numpy()))
    components = WhitenedPCA(6).fit(x.split(size)).transform(x).double() * (80 / 79) ** -0.5
    assert torch.allclose(components * (components * expected).sum(0).sign(), expected, atol=1e-2)


def test_few_examples_get_few_components() -> None:
    assert WhitenedPCA(64).fit([torch.randn(40, 100)]).projection.shape == (100, 4)


def test_no_more_components_than_the_rank_are_kept() -> None:
    x = torch.randn(50, 2) @ torch.randn(2, 9)
    transformed = WhitenedPCA(5).fit([x]).transform(x)
    assert transformed.shape == (50, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(50, 9) / 3, "all examples are equal"),
        (torch.ones(1, 9), "at least 2 examples, not 1"),
        (torch.full((4, 2), torch.nan), "NaN"),
        (torch.zeros(2, 8193), "8193 values take too much memory"),
    ],
)
def test_what_has_no_components_is_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WhitenedPCA().fit(x.split(30))
