"""Find sets of copies among images, so that cross-validation never trains on one copy and evaluates on another.

Exact copies have equal decoded pixels. Near copies, and mirror images, differ by at most what `duplicates` allows.
Crops, rotations and shifts by more than a few percent of the side are not recognized: they need groups in the source.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from sft_lightning.data.copies import Copies, Edges, label_components, link_to_first
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


def find_copies(images: Sequence[ImageStats | str]) -> Copies:
    """Find exact and near copies among images, mirror images included.

    Args:
        images: Statistics of each image, or the reason why it cannot be read; such an image has no copies.
    """
    contents = [i if content is None else content for i, content in enumerate(identify_contents(images))]
    exact = link_to_first(contents)
    distinct = len(set(contents))
    # In images with almost no contrast, rounding errors would look like a pattern.
    clear = {i: look for i, look in enumerate(images) if isinstance(look, ImageStats) and look.thumbnail.std() >= FLAT}
    alike = np.array(list(clear), np.int64)[link_to_first([look.thumbnail_digest for look in clear.values()])]
    copied = {*exact[:, 0].tolist(), *alike[:, 0].tolist()}
    near = _find_near({i: look.thumbnail for i, look in clear.items() if i not in copied})
    sets = label_components(len(images), np.concatenate([exact, alike, near]))
    return Copies(sets, len(images) - distinct, distinct - len(set(sets)))


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
                        sets = np.array(label_components(len(pixels), np.concatenate(edges)))
            bar.update(len(pixels[chunk]))
    return positions[np.concatenate(edges)]
