"""Methods that choose examples to label from features alone: typical ones, diverse ones, or both.

Each takes features (N, F), the number of examples to choose, a seed, and the positions of examples that have labels
already, beside which it chooses. Each returns positions, int64, (count,), the most useful first as far as the method
has an order.
"""

import warnings

import torch
from torch import Tensor

from sft_lightning.classifiers.neighbors import find_neighbors

_TYPICAL_NEIGHBORS, _MAX_CLUSTERS, _SMALLEST_CLUSTER = 20, 500, 5  # TypiClust's own settings
_CLUSTERED = 20_000  # examples that k-means learns from; all are assigned


def random_choice(x: Tensor, count: int, seed: int = 0, labeled: Tensor | None = None) -> Tensor:
    """Choose examples at random.

    Args:
        x: Features, (N, F).
        count: Number of examples to choose.
        seed: Seed of the choice.
        labeled: Positions of labeled examples, int64, (L,), which are not chosen.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return order[_is_free(len(x), labeled)[order]][:count]


def kmeans_centers(x: Tensor, count: int, seed: int = 0, labeled: Tensor | None = None) -> Tensor:
    """Choose the example nearest to each center of k-means with as many clusters, the largest cluster first.

    With labels, there are as many more clusters, and those that hold no labeled example come first.

    Args:
        x: Features, (N, F).
        count: Number of examples to choose.
        seed: Seed of the clusters.
        labeled: Positions of labeled examples, int64, (L,), which are not chosen.
    """
    clusters = min(count + (0 if labeled is None else len(labeled)), len(x))
    centers, assigned = _cluster(x, clusters, seed)
    free = _is_free(len(x), labeled)
    distances = (x - centers[assigned]).square().sum(1)
    return _pick(-distances, assigned, clusters, free, count, labeled)


def typiclust(x: Tensor, count: int, seed: int = 0, labeled: Tensor | None = None) -> Tensor:
    """Choose the most typical example of each cluster (TypiClust): Hacohen et al. 2022, "Active Learning on a Budget".

    Typicality is the inverse of the mean distance to the 20 nearest neighbors. k-means makes as many clusters as there
    are labels in the end, at most 500. Clusters with the fewest labels come first, of those the largest; clusters of
    fewer than 5 examples come last.

    Args:
        x: Features, (N, F).
        count: Number of examples to choose.
        seed: Seed of the clusters.
        labeled: Positions of labeled examples, int64, (L,), which are not chosen.
    """
    clusters = min(count + (0 if labeled is None else len(labeled)), _MAX_CLUSTERS, len(x))
    _, assigned = _cluster(x, clusters, seed)
    nearest = find_neighbors(x, x, min(_TYPICAL_NEIGHBORS, len(x) - 1), exclude_self=True)
    distance = torch.zeros(len(x))
    for column in nearest.T:
        distance += (x - x[column]).square().sum(1).sqrt()
    return _pick(-distance, assigned, clusters, _is_free(len(x), labeled), count, labeled)


def k_center(x: Tensor, count: int, seed: int = 0, labeled: Tensor | None = None) -> Tensor:
    """Choose the example that is farthest from all chosen ones, again and again (greedy k-center).

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach". Without labels, the
    first example is the one nearest to the mean. It chooses outliers, and needs more labels than the other methods.

    Args:
        x: Features, (N, F).
        count: Number of examples to choose.
        seed: Not used: the choice is deterministic.
        labeled: Positions of labeled examples, int64, (L,), which are not chosen.
    """
    taken = [] if labeled is None else labeled.tolist()
    chosen = [] if taken else [int((x - x.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(x),), torch.inf)

    def cover(i: int) -> None:
        torch.minimum(nearest, (x - x[i]).square().sum(1), out=nearest)
        nearest[i] = -1  # is not chosen again

    for i in taken + chosen:
        cover(i)
    while len(chosen) < min(count, len(x) - len(taken)):
        chosen.append(int(nearest.argmax()))
        cover(chosen[-1])
    return torch.tensor(chosen)


def _is_free(count: int, labeled: Tensor | None) -> Tensor:
    free = torch.ones(count, dtype=torch.bool)
    if labeled is not None:
        free[labeled] = False
    return free


def _cluster(x: Tensor, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the centers of k-means, (K, F), and the cluster of each example, int64, (N,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: max(_CLUSTERED, 40 * clusters)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different examples than clusters
        model = KMeans(clusters, n_init=1, random_state=seed).fit(x[sample].numpy())
    return torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.predict(x.numpy())).long()


def _pick(score: Tensor, assigned: Tensor, clusters: int, free: Tensor, count: int, labeled: Tensor | None) -> Tensor:
    """Take the example of the highest score from the cluster with the fewest labels, the largest first, in turn."""
    sizes = assigned.bincount(minlength=clusters)
    covered = torch.zeros(clusters, dtype=torch.int64)
    if labeled is not None:
        covered = assigned[labeled].bincount(minlength=clusters)
    order = score.argsort(descending=True, stable=True)
    queues = [order[(assigned == k)[order] & free[order]].tolist() for k in range(clusters)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        k = min(
            (k for k in range(clusters) if queues[k]),
            key=lambda k: (int(sizes[k]) < _SMALLEST_CLUSTER, int(covered[k]), -int(sizes[k])),
        )
        chosen.append(queues[k].pop(0))
        covered[k] += 1
    return torch.tensor(chosen, dtype=torch.int64)
