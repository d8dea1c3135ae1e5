"""Find sets of copies among examples, so that cross-validation never trains on one copy and evaluates on another.

Exact copies have equal decoded pixels. Near copies, and mirror images, differ by at most what `duplicates` allows.
Crops, rotations and shifts by more than a few percent of the side are not recognized: they need groups in the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sft_lightning.data.source import Examples
from sft_lightning.data.vision.image_stats import ImageStats, Pixels, identify_contents
from sft_lightning.data.vision.near_duplicates import (
    CHUNK,
    FIELD,
    FLAT,
    WHOLE,
    compute_coefficients,
    compute_differences,
)
from sft_lightning.utils.progress_lines import LoggedProgress

_NEAREST = 32  # near copies of each image that are linked directly; larger sets are joined through these

Edges = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Sets of copies among examples.

    Attributes:
        sets: Number of the set of each example; an example without copies forms its own set.
        exact: Number of examples that equal an earlier one.
        near: Number of further examples that nearly equal an earlier one.
    """

    sets: list[int]
    exact: int
    near: int

    def __str__(self) -> str:
        kinds = [f"{n} {kind}" for n, kind in ((self.exact, "exact"), (self.near, "near")) if n]
        return f"{' and '.join(kinds)} {'copy' if self.count == 1 else 'copies'} of others"

    @property
    def count(self) -> int:
        """Number of examples that repeat an earlier one."""
        return self.exact + self.near

    def join_groups(self, groups: Sequence[str] | None) -> list[str] | None:
        """Join copies, and groups that share a copy, into groups that must stay together.

        Args:
            groups: Group of each example in its source, or None.

        Returns:
            Name of each example's group; `groups` itself if nothing is copied.
        """
        if not self.count:
            return None if groups is None else list(groups)
        if groups is None:
            return [str(number) for number in self.sets]
        edges = np.concatenate([_link_to_first(self.sets), _link_to_first(groups)])
        return [str(number) for number in _label_components(len(groups), edges)]

    def pick_representatives(self, labels: Sequence[int]) -> list[int]:
        """Return the position of the first example of each set and label.

        Args:
            labels: Class of each example. Copies with different labels are all kept: which label is right is unknown.
        """
        first: dict[tuple[int, int], int] = {}
        for i, key in enumerate(zip(self.sets, labels, strict=True)):
            first.setdefault(key, i)
        return list(first.values())


def find_copies(images: Sequence[ImageStats | str]) -> Copies:
    """Find exact and near copies among images, mirror images included.

    Args:
        images: Statistics of each image, or the reason why it cannot be read; such an image has no copies.
    """
    contents = [i if content is None else content for i, content in enumerate(identify_contents(images))]
    exact = _link_to_first(contents)
    distinct = len(set(contents))
    # In images with almost no contrast, rounding errors would look like a pattern.
    clear = {i: look for i, look in enumerate(images) if isinstance(look, ImageStats) and look.thumbnail.std() >= FLAT}
    alike = np.array(list(clear), np.int64)[_link_to_first([look.thumbnail_digest for look in clear.values()])]
    copied = {*exact[:, 0].tolist(), *alike[:, 0].tolist()}
    near = _find_near({i: look.thumbnail for i, look in clear.items() if i not in copied})
    sets = _label_components(len(images), np.concatenate([exact, alike, near]))
    return Copies(sets, len(images) - distinct, distinct - len(set(sets)))


def get_groups(examples: Sequence[tuple[Examples, int]]) -> list[str] | None:
    """Return the source's group of each example, or None if the source has no groups.

    Args:
        examples: Collection and position of each example; one without groups is the only member of its group.
    """
    if all(part.groups is None for part, _ in examples):
        return None
    return [part.ids[k] if part.groups is None else part.groups[k] for part, k in examples]


def _find_near(images: dict[int, Pixels]) -> Edges:
    """Return pairs of positions whose images nearly equal each other or each other's mirror images."""
    if len(images) < 2:
        return np.zeros((0, 2), np.int64)
    positions, pixels = np.array(list(images), np.int64), np.stack(list(images.values()))
    chunks = [slice(k, k + CHUNK) for k in range(0, len(pixels), CHUNK)]
    tree = cKDTree(np.concatenate([compute_coefficients(pixels[chunk]) for chunk in chunks]))
    edges = [np.zeros((0, 2), np.int64)]
    sets = np.arange(len(pixels))
    with LoggedProgress(len(pixels), "Copies", "image") as bar:
        for chunk in chunks:
            for queries in (pixels[chunk], pixels[chunk][:, :, ::-1]):
                _, nearest = tree.query(
                    compute_coefficients(queries),
                    k=range(1, _NEAREST + 2),
                    distance_upper_bound=WHOLE + 1e-4,
                    workers=-1,
                )
                for others in nearest.T:
                    rows = np.flatnonzero(others < len(pixels))
                    # If both are already in one set, another edge adds nothing.
                    rows = rows[sets[rows + chunk.start] != sets[others[rows]]]
                    overall, field = compute_differences(queries[rows], pixels[others[rows]])
                    rows = rows[(overall <= WHOLE) & (field <= FIELD)]
                    if len(rows):
                        edges.append(np.stack([rows + chunk.start, others[rows]], axis=1))
                        sets = np.array(_label_components(len(pixels), np.concatenate(edges)))
            bar.update(len(pixels[chunk]))
    return positions[np.concatenate(edges)]


def _link_to_first(names: Sequence[object]) -> Edges:
    """Return an edge from each position whose name occurred before to the first position with that name."""
    first: dict[object, int] = {}
    edges = [(i, first.setdefault(name, i)) for i, name in enumerate(names)]
    return np.array([(i, j) for i, j in edges if i != j], np.int64).reshape(-1, 2)


def _label_components(count: int, edges: Edges) -> list[int]:
    if not count:
        return []
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    return [int(number) for number in connected_components(graph, directed=False)[1]]
