import sys

import pytest
import torch

from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.utils.errors import InputError


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_neighbors_are_the_nearest_in_order(approximate: bool, exclude_self: bool) -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 1000  # far from 0, where squares cancel
    distances = torch.cdist(x.double(), x.double())
    distances.diagonal().fill_(torch.inf if exclude_self else 0)
    expected = distances.topk(4, largest=False).indices
    assert torch.equal(
        find_neighbors(x - 1000 * approximate, x - 1000 * approximate, 4, exclude_self=exclude_self,
                       approximate=approximate), expected
    )  # fmt: skip


def test_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(100, 3), torch.randn(90, 3)
    full = find_neighbors(x, y, 5), find_neighbors(x, x, 5, exclude_self=True)
    monkeypatch.setattr("sft_lightning.classifiers.neighbors._CPU_BLOCK", 700)
    assert torch.equal(find_neighbors(x, y, 5), full[0])
    assert torch.equal(find_neighbors(x, x, 5, exclude_self=True), full[1])


@pytest.mark.slow
def test_an_approximate_search_finds_most_neighbors_in_many_lists_and_repeats_exactly() -> None:
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    first, second = (find_neighbors(x, x, 10, exclude_self=True, approximate=True) for _ in range(2))
    assert torch.equal(first, second)
    exact = find_neighbors(x, x, 10, exclude_self=True)
    assert (first[:, :, None] == exact[:, None, :]).any(2).float().mean() > 0.95
    assert not (first == torch.arange(len(x))[:, None]).any()


def test_an_approximate_search_among_copies_leaves_out_the_example_itself() -> None:
    x = torch.zeros(100, 4)
    nearest = find_neighbors(x, x, 10, exclude_self=True, approximate=True)
    assert nearest.shape == (100, 10)
    assert not (nearest == torch.arange(100)[:, None]).any()


def test_lists_with_too_few_examples_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lightning.classifiers.neighbors._PROBED", 1)
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    nearest = find_neighbors(x, x, 200, exclude_self=True, approximate=True)
    assert nearest.min() >= 0
    assert not (nearest == torch.arange(400)[:, None]).any()
    assert all(len(row.unique()) == 200 for row in nearest)


def test_faiss_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'sft-lightning\[graph\]'"):
        find_neighbors(torch.randn(9, 2), torch.randn(9, 2), 3, approximate=True)


def test_more_neighbors_than_examples_are_refused() -> None:
    with pytest.raises(InputError, match="neighbors is 9, but there are only 8 other examples"):
        find_neighbors(torch.randn(9, 2), torch.randn(9, 2), 9, exclude_self=True)
