"""Greedy choice of few vectors that cover many: k-center (Sener and Savarese 2018, "Active Learning for CNNs")."""

import torch
from torch import Tensor

PROJECTED = 128  # dimensions in which distances are computed


def choose_coreset(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Choose vectors one by one, each time the one that is farthest from all that are chosen.

    As in PatchCore, distances are those of a random projection, which keeps them nearly (Johnson and Lindenstrauss
    1984). The choice ends early where every vector equals a chosen one.

    Args:
        vectors: Vectors, (N, D).
        count: Number of vectors to choose.
        seed: Seed of the projection and of the first vector.

    Returns:
        Positions in the order of their choice, int64, at most (count,).
    """
    draw = torch.Generator().manual_seed(seed)
    dimensions = vectors.shape[1]
    first = int(torch.randint(len(vectors), (1,), generator=draw))
    if dimensions > PROJECTED:
        projection = torch.randn(dimensions, PROJECTED, generator=draw, dtype=torch.float64) / PROJECTED**0.5
        vectors = vectors @ projection.to(vectors)
    norms = vectors.square().sum(1)
    chosen = torch.empty(min(count, len(vectors)), dtype=torch.int64, device=vectors.device)
    chosen[0] = first
    distance = torch.full_like(norms, torch.inf)
    at = chosen[:1]
    for k in range(1, len(chosen)):
        # |x - c|^2 in three terms: one pass over the vectors, without a copy of them.
        squares = torch.addmv(norms, vectors, vectors[at[0]], alpha=-2).add_(norms[at])
        distance = torch.minimum(distance, squares)
        distance[at] = -1  # rounding may leave a chosen one above 0
        at = chosen[k : k + 1] = distance.argmax(0, keepdim=True)
    return _without_copies(vectors, chosen)


def _without_copies(vectors: Tensor, chosen: Tensor) -> Tensor:
    """Return a choice without vectors that equal an earlier one."""
    _, kinds = torch.unique(vectors[chosen], dim=0, return_inverse=True)
    first = torch.full((int(kinds.max()) + 1,), len(chosen), dtype=torch.int64, device=chosen.device)
    first.scatter_reduce_(0, kinds, torch.arange(len(chosen), device=chosen.device), "amin")
    return chosen[first.sort().values]
