"""Find duplicates: exact ones by decoded content, near-duplicates by the distance of thumbnails.

Near-duplicates are images that were re-encoded, resized, or changed by noise or brightness. Benchmarks have many of
them between training and test (Barz & Denzler 2020). Each image is reduced to 32 x 32 pixels and standardized to mean 0
and standard deviation 1. Two images are near-duplicates if their root mean square difference is at most 0.15 overall
and at most 0.25 in each of 8 x 8 fields: the first bound allows a fast search, the second separates a shirt from the
same shirt with a print.

Candidates come from a k-d tree over the 32 lowest coefficients of the discrete cosine transform. This is a projection,
which never increases a distance, so that no pair within the bound is lost, unlike with a hash: a 64-bit perceptual hash
of the same coefficients at a Hamming distance of 6 matches 890,000 pairs of Fashion-MNIST, this method 99.
`scripts/bench/audit.py` measures false alarms and the share of changed copies that are found. Crops, shifts, mirror
images and images with almost no contrast are not found.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, islice

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.spatial import cKDTree

from sft_lightning.data.split_stats import Pair, find_equal
from sft_lightning.data.vision.image_stats import SIDE, ImageSplitStats, Pixels, identify_contents, stack_thumbnails
from sft_lightning.utils.progress_lines import LoggedProgress

WHOLE, FIELD = 0.15, 0.25
_COEFFICIENTS, _NEAREST, _FIELDS = 32, 8, 8
FLAT = 4.0  # standard deviation of gray levels below which rounding errors would look like a pattern
CHUNK = 4096

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]


def find_near_duplicates(splits: Sequence[ImageSplitStats]) -> tuple[list[Pair], list[Pair]]:
    """Find exact and near-duplicates within each split and between any two splits.

    Each image with a duplicate in another split, or an earlier one in its own, is in one pair for that split.

    Args:
        splits: Statistics of the splits; the image in the earlier split is `first` in a pair.

    Returns:
        Exact duplicates, and near-duplicates sorted by their difference.
    """
    contents = iter(identify_contents([look for one in splits for look in one.examples]))
    tables = [_SplitIndex(one, list(islice(contents, len(one.examples)))) for one in splits]
    exact = find_equal(splits, [table.digests for table in tables])
    near: list[Pair] = []
    for a, b in combinations_with_replacement(range(len(splits)), 2):
        equal = {pair.first[1] for pair in exact if pair.first[0] is splits[a] and pair.second[0] is splits[b]}
        matches = _find_nearly_equal(tables[a], tables[b], equal)
        near += [Pair((splits[a], i), (splits[b], j), difference) for i, j, difference in matches]
    return exact, sorted(near, key=lambda pair: pair.difference)


class _SplitIndex:
    """Index of a split: the content of its images, and the coefficients of all images with contrast."""

    def __init__(self, split: ImageSplitStats, contents: Sequence[object]) -> None:
        self.split = split
        self.digests = {i: content for i, content in enumerate(contents) if content is not None}
        clear = {i: look.thumbnail_digest for i, look in split.readable if look.thumbnail.std() >= FLAT}
        positions = list(clear)
        # With thousands of equal thumbnails, a tree of all images would compare each pair of them.
        firsts: dict[bytes, int] = {}
        for k, digest in enumerate(clear.values()):
            firsts.setdefault(digest, k)
        self.offered = np.array(list(firsts.values()), dtype=np.int64)
        self.positions: Positions = np.array(positions, dtype=np.int64)
        chunks = [positions[k : k + CHUNK] for k in range(0, len(positions), CHUNK)]
        made = [compute_coefficients(stack_thumbnails(split, chunk)) for chunk in chunks]
        self.coefficients = np.concatenate(made) if made else np.zeros((0, _COEFFICIENTS), np.float32)


def _find_nearly_equal(a: _SplitIndex, b: _SplitIndex, known: set[int]) -> Iterator[tuple[int, int, float]]:
    """Yield for each image of a its nearest image in b, if it is a near-duplicate."""
    asked = np.array([k for k, i in enumerate(a.positions.tolist()) if i not in known], dtype=np.int64)
    offered = b.offered
    if not len(asked) or not len(offered):
        return
    tree = cKDTree(b.coefficients[offered])
    pieces = []
    desc = f"Near-duplicates ({a.split.name}, {b.split.name})"
    with LoggedProgress(len(asked), desc, "image") as bar:
        for k in range(0, len(asked), CHUNK):
            some = a.coefficients[asked[k : k + CHUNK]]
            pieces.append(tree.query(some, range(1, _NEAREST + 2), distance_upper_bound=WHOLE + 1e-4, workers=-1)[1])
            bar.update(len(some))
    nearest = np.concatenate(pieces)
    rows, columns = np.nonzero(nearest < len(offered))
    left, right = a.positions[asked[rows]], b.positions[offered[nearest[rows, columns]]]
    if a is b:  # each pair once, and no image with itself
        left, right = left[left > right], right[left > right]
    best: dict[int, tuple[float, int]] = {}
    for k in range(0, len(left), CHUNK):
        i, j = left[k : k + CHUNK].tolist(), right[k : k + CHUNK].tolist()
        overall, field = compute_differences(stack_thumbnails(a.split, i), stack_thumbnails(b.split, j))
        for x, y, ok, most in zip(i, j, (overall <= WHOLE) & (field <= FIELD), field.tolist(), strict=True):
            if ok:
                best[x] = min(best.get(x, (most, y)), (most, y))
    yield from ((i, j, difference) for i, (difference, j) in best.items())


def _standardize(thumbnails: Pixels) -> Floats:
    """Scale each thumbnail to mean 0 and standard deviation 1 over its pixels and channels, (N, 32, 32, C)."""
    x = thumbnails.astype(np.float32)
    x -= x.mean((1, 2, 3), keepdims=True)
    x /= np.maximum(x.std((1, 2, 3), keepdims=True), 1e-6)
    return x


def compute_coefficients(thumbnails: Pixels) -> Floats:
    """Compute the lowest cosine coefficients but the mean's, scaled so that distances are root mean squares of pixels.

    Args:
        thumbnails: Pixels of shape (N, 32, 32, C).

    Returns:
        Coefficients of shape (N, 32).
    """
    x = _standardize(thumbnails)
    channels = x.shape[3]
    transformed = dctn(x.sum(3) / channels**0.5, axes=(1, 2), norm="ortho")
    order = np.add.outer(np.arange(SIDE), np.arange(SIDE)).ravel().argsort(kind="stable")[1 : _COEFFICIENTS + 1]
    low: Floats = transformed.reshape(len(x), -1)[:, order] / (SIDE * channels**0.5)
    return low


def compute_differences(one: Pixels, other: Pixels) -> tuple[Floats, Floats]:
    """Compute root mean square differences of standardized thumbnails.

    Args:
        one: Thumbnails of shape (N, 32, 32, C).
        other: Thumbnails of the same shape.

    Returns:
        Differences over the full thumbnails and over the field that differs most, each of shape (N,).
    """
    square = (_standardize(one) - _standardize(other)) ** 2
    n, step = len(square), SIDE // _FIELDS
    fields = square.reshape(n, _FIELDS, step, _FIELDS, step, square.shape[3]).mean((2, 4, 5))
    return fields.mean((1, 2)) ** 0.5, fields.max((1, 2)) ** 0.5
