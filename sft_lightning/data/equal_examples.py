"""Equal examples across splits, and a sentence about those whose labels differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sft_lightning.data.issues import Finding

if TYPE_CHECKING:
    from sft_lightning.data.splits import SplitConfig, Splits
    from sft_lightning.data.storage import Storage

_AT_ONCE = 4096  # digests held in memory during the search for equal examples


def find_equal_examples(splits: Splits, request: SplitConfig) -> list[list[tuple[str, int]]]:
    """Find groups of equal examples, and report those with different labels.

    Args:
        splits: Splits to compare; labels of unlabeled examples are ignored.
        request: Request that findings are appended to.

    Returns:
        Groups of two or more equal examples; each example is the name of its split and its position in the collection.
    """
    groups = find_duplicates({name: (split.part.storage, split.indices) for name, split in splits.items()})
    contrary = []
    for group in groups:
        first = {int(splits[name].part.labels[i]): splits[name].part.ids[i] for name, i in group if name != "unlabeled"}
        first.pop(-1, None)
        if len(first) > 1:
            contrary.append(list(first.values()))
    if contrary:
        examples = "1 example has" if len(contrary) == 1 else f"{len(contrary):,} examples have"
        message = (
            f"{examples} copies with another label, such as {contrary[0][0]!r} and {contrary[0][1]!r}: correct the "
            "labels or remove the copies"
        )
        request.findings.append(Finding("label_conflict", message, [name for ids in contrary for name in ids]))
    return groups


def find_duplicates(sets: dict[str, tuple[Storage, Sequence[int]]]) -> list[list[tuple[str, int]]]:
    """Find equal examples across sets by content.

    Only examples whose size in bytes occurs more than once are hashed, so a folder of large files costs one `stat` per
    file. Of each digest, 8 bytes are kept, and full digests are compared only where these are equal.

    Args:
        sets: Examples of each set, and the indices that belong to it, by name.

    Returns:
        Groups of two or more equal examples, each as (set, index).
    """
    sizes = {name: np.asarray(examples.sizes(indices), dtype=np.int64) for name, (examples, indices) in sets.items()}
    values, counts = np.unique(np.concatenate([*sizes.values()]), return_counts=True)
    often = values[(counts > 1) & (values > 0)]
    twins = {name: _of(sets[name][1], np.isin(sizes[name], often)) for name in sets}
    short = {name: _short(sets[name][0], twins[name]) for name in sets}
    values, counts = np.unique(np.concatenate([*short.values()]), return_counts=True)
    seen: dict[bytes, list[tuple[str, int]]] = {}
    for name, (examples, _) in sets.items():
        equal = twins[name][np.isin(short[name], values[counts > 1])].tolist()
        for index, content in zip(equal, examples.fingerprints(equal), strict=True):
            seen.setdefault(content, []).append((name, index))
    return [group for group in seen.values() if len(group) > 1]


def _of(indices: Sequence[int], which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.asarray(indices, dtype=np.int64)[which]


def _short(examples: Storage, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of the digest of each example."""
    found = np.empty(len(indices), np.uint64)
    for first in range(0, len(indices), _AT_ONCE):
        contents = examples.fingerprints(indices[first : first + _AT_ONCE].tolist())
        found[first : first + _AT_ONCE] = np.frombuffer(b"".join(content[:8] for content in contents), np.uint64)
    return found
