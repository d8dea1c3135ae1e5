from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sft_lightning.selection import k_center, kmeans_centers, random_choice, typiclust

METHODS = [k_center, kmeans_centers, random_choice, typiclust]
CENTERS = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def clusters(count: int = 50) -> tuple[Tensor, Tensor]:
    """Four clusters of 50, 40, 30 and 20 % of the count: features and cluster."""
    y = torch.cat([torch.full((count - 10 * k,), k) for k in range(4)])
    return CENTERS[y] + torch.randn(len(y), 2, generator=torch.Generator().manual_seed(0)), y


@pytest.mark.parametrize("method", METHODS)
def test_choices_are_distinct_and_leave_out_what_has_a_label(method: Callable[..., Tensor]) -> None:
    x, _ = clusters()
    labeled = torch.tensor([3, 60, 120])
    for given in (None, labeled):
        chosen = method(x, 30, 0, given)
        assert chosen.dtype == torch.int64
        assert len(chosen.unique()) == 30
        assert torch.equal(chosen, method(x, 30, 0, given))
    assert not set(chosen.tolist()) & set(labeled.tolist())
    everything = method(x, len(x) - 3, 0, labeled)
    assert sorted(everything.tolist()) == [i for i in range(len(x)) if i not in labeled]


@pytest.mark.parametrize("method", [k_center, kmeans_centers, typiclust])
def test_each_cluster_gets_a_label(method: Callable[..., Tensor]) -> None:
    x, y = clusters()
    assert sorted(y[method(x, 4, 0)].tolist()) == [0, 1, 2, 3]
    assert y[method(x, 2, 0, torch.tensor([0, 60]))].sort().values.tolist() == [2, 3]  # those without a label


def test_k_means_chooses_the_example_nearest_to_the_center_of_the_largest_cluster_first() -> None:
    x, y = clusters()
    chosen = kmeans_centers(x, 4, 0)
    assert y[chosen].tolist() == [0, 1, 2, 3]
    for k, i in enumerate(chosen.tolist()):
        members = (y == k).nonzero()[:, 0]
        distances = (x[members] - x[members].mean(0)).square().sum(1)
        assert i == members[distances.argmin()]


def test_typiclust_chooses_the_example_with_the_nearest_neighbors() -> None:
    x, y = clusters()
    distances = torch.cdist(x, x)
    distances.diagonal().fill_(torch.inf)
    typicality = -distances.topk(20, largest=False).values.mean(1)
    expected = [int(torch.where(y == k, typicality, -torch.inf).argmax()) for k in range(4)]
    assert typiclust(x, 4, 0).tolist() == expected


def test_typiclust_leaves_tiny_clusters_for_last() -> None:
    x, y = clusters()
    x, y = torch.cat([x, torch.full((3, 2), 100.0)]), torch.cat([y, torch.full((3,), 4)])
    assert y[typiclust(x, 5, 0)].tolist()[:4] == [0, 1, 2, 3]
    assert 4 in y[k_center(x, 3, 0)].tolist()  # which chooses what is far away


def test_k_center_is_the_farthest_point_each_time() -> None:
    x, _ = clusters()
    chosen = [int((x - x.mean(0)).square().sum(1).argmin())]
    for _ in range(9):
        chosen.append(int(torch.cdist(x, x[chosen]).min(1).values.argmax()))
    assert k_center(x, 10).tolist() == chosen


def test_another_seed_makes_another_random_choice() -> None:
    x, _ = clusters()
    assert random_choice(x, 9, 0).tolist() != random_choice(x, 9, 1).tolist()
