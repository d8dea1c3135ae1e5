"""Nearest neighbors in bounded memory: exact search in blocks, or an inverted file of faiss (extra `graph`)."""

import math
from typing import Any

import torch
from torch import Tensor

from sft_lightning.utils.errors import InputError

_CPU_BLOCK, _DEVICE_BLOCK = 4_000_000, 200_000_000  # distances at a time: what a cache, or a small GPU, holds
_PROBED = 64  # lists that an approximate search reads for each query


def find_neighbors(
    queries: Tensor, examples: Tensor, k: int, *, exclude_self: bool = False, approximate: bool = False
) -> Tensor:
    """Find the nearest examples by Euclidean distance, which on normalized features orders them like the cosine.

    Distances are float32, since they only order the examples, and are computed on the accelerator if there is one. The
    exact search takes N M F multiplications, a block of them at a time; the approximate one clusters the examples and
    compares each query with those of the 64 nearest clusters.

    Args:
        queries: Features, (N, F).
        examples: Features to choose from, (M, F).
        k: Number of neighbors.
        exclude_self: Whether query i is example i, which is not its own neighbor.
        approximate: Whether to use faiss, which pays from some 200,000 examples on and needs the extra `graph`.

    Returns:
        Positions of the neighbors in `examples`, nearest first, int64, (N, k), on the CPU.

    Raises:
        InputError: There are not enough examples, or faiss is not installed.
    """
    available = len(examples) - exclude_self
    if k > available:
        raise InputError(f"neighbors is {k}, but there are only {available} other examples: give at most {available}")
    queries, examples = queries.float(), examples.float()
    search = _search_index if approximate else _search_blocks
    return search(queries, examples, k, exclude_self)


def _search_blocks(queries: Tensor, examples: Tensor, k: int, exclude_self: bool) -> Tensor:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    center = examples.mean(0)  # squares of features far from 0 would cancel
    examples, queries = (examples - center).to(device), queries - center
    squares = examples.square().sum(1)
    size = max(1, (_CPU_BLOCK if accelerator is None else _DEVICE_BLOCK) // len(examples))
    nearest = torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), size):
        block = queries[start : start + size].to(device)
        distances = torch.addmm(squares[None], block, examples.T, alpha=-2)  # without |query|^2, the same for all
        if exclude_self:
            rows = torch.arange(len(block), device=device)
            distances[rows, start + rows] = torch.inf
        chosen = distances.argmin(1, keepdim=True) if k == 1 else distances.topk(k, 1, largest=False).indices
        nearest[start : start + size] = chosen.cpu()
    return nearest


def _search_index(queries: Tensor, examples: Tensor, k: int, exclude_self: bool) -> Tensor:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "approximate needs faiss, which is not installed: pip install 'sft-lightning[graph]', or set it to false"
        ) from error
    lists = max(1, min(round(4 * math.sqrt(len(examples))), len(examples) // 40))
    queries, examples = queries.cpu(), examples.cpu()
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(examples.shape[1]), examples.shape[1], lists)
    index.train(examples.numpy())  # its seed is fixed
    index.add(examples.numpy())
    index.nprobe = min(lists, _PROBED)
    rows: Tensor = torch.from_numpy(index.search(queries.numpy(), k + exclude_self)[1])
    if exclude_self:
        rows = _drop_self(rows)
    if bool((rows < 0).any()):  # the lists that were read held fewer than k examples
        lacking = (rows < 0).any(1).nonzero()[:, 0]
        rows[lacking] = torch.stack([_search_lacking(queries, examples, k, exclude_self, int(i)) for i in lacking])
    return rows


def _drop_self(rows: Tensor) -> Tensor:
    """Remove each row's own number, or the last column where a copy took its place: (N, k + 1) to (N, k)."""
    own = rows == torch.arange(len(rows))[:, None]
    own[:, -1] |= ~own.any(1)
    return rows[~own].view(len(rows), -1)


def _search_lacking(queries: Tensor, examples: Tensor, k: int, exclude_self: bool, i: int) -> Tensor:
    """Search exactly for one query."""
    distances = (examples - queries[i]).square().sum(1)
    if exclude_self:
        distances[i] = torch.inf
    return distances.topk(k, largest=False).indices
