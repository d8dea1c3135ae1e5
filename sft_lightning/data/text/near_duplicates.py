"""Find nearly equal texts: MinHash of word n-grams, Broder 1997, "On the Resemblance and Containment of Documents".

A text is the set of its runs of 3, 4 and 5 words, without case and punctuation. Two texts are near-duplicates if they
share at least 0.6 of the runs that either has (Jaccard similarity): one changed word in a text of 20 leaves 0.62. Texts
of fewer than 12 words are near-duplicates only if all of their words are equal, because phrases such as "a native or
inhabitant of England" and "of Portugal" say different things. Candidates are the texts that agree in all four minima of
one of 32 bands of hash functions (Leskovec, Rajaraman & Ullman 2014, "Mining of Massive Datasets", chapter 3), which
finds 99 % of the pairs with a similarity of 0.6. Each candidate is compared exactly.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from sft_lightning.data.copies import Copies, Edges, label_components, link_to_first
from sft_lightning.data.split_stats import Pair, find_equal
from sft_lightning.data.text.text_stats import TextSplitStats
from sft_lightning.utils.progress_lines import LoggedProgress

DIFFERENCE = 0.4  # 1 - Jaccard similarity
_MIN_RUNS = 27  # of a text of 12 words
_LENGTHS = (3, 4, 5)
_BANDS, _ROWS = 32, 4
_MOST = 64  # candidates of one band: of a phrase that thousands of texts share, the first are compared
_WORD = re.compile(r"\w+")

Hashes = NDArray[np.uint64]


def find_near_duplicates(splits: Sequence[TextSplitStats]) -> tuple[list[Pair], list[Pair]]:
    """Find exact and near-duplicates within each split and between any two splits.

    Each text with a duplicate in another split, or an earlier one in its own, is in one pair for that split.

    Args:
        splits: Statistics of the splits; the text in the earlier split is `first` in a pair.

    Returns:
        Exact duplicates, and near-duplicates sorted by their difference.
    """
    exact = find_equal(splits, [{i: one.digest for i, one in split.readable} for split in splits])
    indices = [TextIndex([one.text for _, one in split.readable]) for split in splits]
    near: list[Pair] = []
    for a, b in combinations_with_replacement(range(len(splits)), 2):
        equal = {pair.first[1] for pair in exact if pair.first[0] is splits[a] and pair.second[0] is splits[b]}
        for i in range(len(splits[a])):
            if i not in equal and (match := indices[a].find_nearest(i, indices[b])) is not None:
                near.append(Pair((splits[a], i), (splits[b], match[1]), match[0]))
    return exact, sorted(near, key=lambda pair: pair.difference)


def find_copies(texts: Sequence[str]) -> Copies:
    """Find exact and near copies among texts.

    Args:
        texts: Texts.
    """
    exact = link_to_first(texts)
    distinct, copied = len(set(texts)), {*exact[:, 0].tolist()}
    index = TextIndex(texts)
    pairs = [
        (i, j)
        for i in range(len(texts))
        if i not in copied
        for j in index.find_candidates(i, index)
        if index.measure_difference(i, index, j) is not None
    ]
    near: Edges = np.array(pairs, np.int64).reshape(-1, 2)
    sets = label_components(len(texts), np.concatenate([exact, near]))
    return Copies(sets, len(texts) - distinct, distinct - len(set(sets)))


class TextIndex:
    """Runs of words of texts, and the texts of each bucket of the bands."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Hash the texts.

        Args:
            texts: Texts.
        """
        generator = np.random.default_rng(0)
        factors = generator.integers(0, 2**64, (1, _BANDS * _ROWS), dtype=np.uint64) | np.uint64(1)
        offsets = generator.integers(0, 2**64, (1, _BANDS * _ROWS), dtype=np.uint64)
        words: dict[str, int] = {}
        self.runs: list[Hashes] = []
        self.keys: list[list[int]] = []
        self.buckets: dict[int, list[int]] = {}
        salts = np.arange(_BANDS, dtype=np.uint64)
        with LoggedProgress(len(texts), "Runs of words", "text") as bar:
            for i, text in enumerate(texts):
                runs = hash_runs(text, words)
                minima = _mix(runs[:, None] * factors + offsets).min(0) if len(runs) else offsets[0] * 0
                keys = salts
                for column in minima.reshape(_BANDS, _ROWS).T:
                    keys = _mix(keys ^ column)
                self.runs.append(runs)
                self.keys.append(keys.tolist() if len(runs) else [])
                for key in self.keys[-1]:
                    bucket = self.buckets.setdefault(key, [])
                    if len(bucket) < _MOST:
                        bucket.append(i)
                bar.update()

    def find_candidates(self, i: int, other: "TextIndex") -> list[int]:
        """Return the texts of an index that share a bucket with a text, those before it in its own index.

        Args:
            i: Position of the text.
            other: Index to look into.
        """
        found = {j for key in self.keys[i] for j in other.buckets.get(key, ())}
        return sorted(j for j in found if other is not self or j < i)

    def measure_difference(self, i: int, other: "TextIndex", j: int) -> float | None:
        """Return 1 - the Jaccard similarity of two texts, or None if they differ more.

        Args:
            i: Position of the text.
            other: Index of the other text.
            j: Position in that index.
        """
        mine, theirs = self.runs[i], other.runs[j]
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        difference = 1 - shared / (len(mine) + len(theirs) - shared)
        allowed = DIFFERENCE if min(len(mine), len(theirs)) >= _MIN_RUNS else 0.0
        return difference if difference <= allowed else None

    def find_nearest(self, i: int, other: "TextIndex") -> tuple[float, int] | None:
        """Return the difference and position of the nearest near-duplicate of a text, or None.

        Args:
            i: Position of the text.
            other: Index to look into; of its own one, the texts before it.
        """
        near = ((self.measure_difference(i, other, j), j) for j in self.find_candidates(i, other))
        return min(((difference, j) for difference, j in near if difference is not None), default=None)


def hash_runs(text: str, words: dict[str, int]) -> Hashes:
    """Return the hashes of the different runs of words of a text, sorted.

    Args:
        text: Text.
        words: Hashes of words that were met before, which is added to.
    """
    numbers = []
    for word in _WORD.findall(text.casefold()):
        if word not in words:
            digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
            words[word] = int.from_bytes(digest, "little")
        numbers.append(words[word])
    hashes = np.array(numbers, np.uint64)
    pieces = []
    for length in _LENGTHS if len(hashes) >= _LENGTHS[0] else (max(1, len(hashes)),):
        count = len(hashes) - length + 1
        if count > 0:
            run = np.full(count, length, np.uint64)
            for k in range(length):
                run = _mix(run ^ hashes[k : k + count])
            pieces.append(run)
    return np.unique(np.concatenate(pieces)) if pieces else hashes


def _mix(x: Hashes) -> Hashes:
    """Return numbers with all bits mixed: the finalizer of splitmix64 (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
