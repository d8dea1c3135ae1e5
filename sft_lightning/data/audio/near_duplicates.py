"""Find nearly equal recordings: such that were encoded again, made louder, resampled, trimmed, or have a little noise.

Each recording, without silent ends, becomes a thumbnail of 32 mel bands up to 4 kHz by 32 stretches of time,
in dB down to 50 dB below its loudest point, standardized to mean 0 and standard deviation 1. Two recordings are
near-duplicates if their root mean square difference is at most 0.2 and their lengths differ by at most a tenth: closer
than two syllables of one speaker, farther than most codecs take a recording from itself. Recordings that share only a
part of their sound are not found, nor are copies in loud noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn

from sft_lightning.data.audio.decoding import Samples, SoundFacts
from sft_lightning.data.audio.findings import SILENT
from sft_lightning.data.copies import Copies, Edges, label_components, link_to_first
from sft_lightning.data.split_stats import Pair, SplitStats, find_equal
from sft_lightning.networks.audio.log_mel import FLOOR, compute_power, make_mel_filters
from sft_lightning.utils.progress_lines import LoggedProgress

DIFFERENCE = 0.2  # root mean square
LENGTHS = 0.1  # difference of lengths, as a share
_SIDE = 32  # mel bands and stretches of time
_HIGHEST = 4000.0  # Hz: what also recordings of telephones have
_FRAME = 0.032  # s
_RANGE, _QUIET = 50.0, 35.0  # dB below the loudest point: what is compared, and what counts as silence at the ends
_LOW = 8  # cosine coefficients of each side, by whose distances pairs are looked for
_CHUNK = 1024

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RecordingStats:
    """Statistics of one readable recording.

    Attributes:
        facts: What its file says, and its peak.
        digest: Digest of the decoded samples.
        thumbnail: Standardized spectrogram, (32, 32); None for silence.
        seconds: Length without the silence at its ends.
    """

    facts: SoundFacts
    digest: bytes
    thumbnail: Floats | None
    seconds: float


RecordingSplitStats = SplitStats[RecordingStats]


def make_thumbnail(x: Samples, rate: int) -> tuple[Floats | None, float]:
    """Return the standardized spectrogram of a recording, (32, 32), and its length in seconds, without silent ends.

    Args:
        x: Samples, (N,).
        rate: Sample rate in Hz.

    Returns:
        The thumbnail, or None for silence, and the length.
    """
    if np.abs(x).max() < SILENT:
        return None, 0.0
    fft = max(2 * _SIDE, round(_FRAME * rate) // 2 * 2)
    hop = fft // 4
    filters = make_mel_filters(rate, fft, _SIDE, min(_HIGHEST, rate / 2))
    power = (filters @ compute_power(torch.from_numpy(np.ascontiguousarray(x))[None], fft, hop))[0]
    level = 10 * power.clamp_min(FLOOR).log10()
    level = (level - level.max()).clamp_min(-_RANGE)
    loud = (level.amax(0) > -_QUIET).nonzero()[:, 0]
    level = level[:, int(loud[0]) : int(loud[-1]) + 1]
    thumbnail = torch.nn.functional.adaptive_avg_pool1d(level[None], _SIDE)[0]
    thumbnail = (thumbnail - thumbnail.mean()) / thumbnail.std(correction=0).clamp_min(1e-6)
    return thumbnail.numpy(), level.shape[1] * hop / rate


def find_near_duplicates(splits: Sequence[RecordingSplitStats]) -> tuple[list[Pair], list[Pair]]:
    """Find exact and near-duplicates within each split and between any two splits.

    Each recording with a duplicate in another split, or an earlier one in its own, is in one pair for that split.

    Args:
        splits: Statistics of the splits; the recording in the earlier split is `first` in a pair.

    Returns:
        Pairs of equal samples, and near-duplicates sorted by their difference.
    """
    exact = find_equal(splits, [{i: one.digest for i, one in split.readable} for split in splits])
    tables = [_Table(dict(split.readable)) for split in splits]
    near: list[Pair] = []
    for a, b in combinations_with_replacement(range(len(splits)), 2):
        equal = {pair.first[1] for pair in exact if pair.first[0] is splits[a] and pair.second[0] is splits[b]}
        for i, (difference, j) in tables[a].find_nearest(tables[b]).items():
            if i not in equal:
                near.append(Pair((splits[a], i), (splits[b], j), difference))
    return exact, sorted(near, key=lambda pair: pair.difference)


def find_copies(recordings: Sequence[RecordingStats | str]) -> Copies:
    """Find exact and near copies among recordings.

    Args:
        recordings: Statistics of each recording, or the reason why it cannot be read; such a one has no copies.
    """
    known = {i: one for i, one in enumerate(recordings) if isinstance(one, RecordingStats)}
    contents = [one.digest if isinstance(one, RecordingStats) else i for i, one in enumerate(recordings)]
    exact, table = link_to_first(contents), _Table(known)
    near: Edges = np.array([(i, j) for i, (_, j) in table.find_nearest(table).items()], np.int64).reshape(-1, 2)
    sets = label_components(len(recordings), np.concatenate([exact, near]))
    distinct = len(set(contents))
    return Copies(sets, len(recordings) - distinct, distinct - len(set(sets)))


class _Table:
    """Pictures of recordings by their position, and what they are looked for by."""

    def __init__(self, recordings: dict[int, RecordingStats]) -> None:
        drawn = [(i, one.thumbnail, one.seconds) for i, one in recordings.items() if one.thumbnail is not None]
        self.positions = [i for i, _, _ in drawn]
        stacked = (
            np.stack([thumbnail for _, thumbnail, _ in drawn]) if drawn else np.zeros((0, _SIDE, _SIDE), np.float32)
        )
        self.thumbnails = stacked.reshape(len(drawn), _SIDE**2)
        # A projection, which never increases a distance, so that no pair is lost.
        low = dctn(stacked, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW]
        self.low: Floats = low.reshape(len(drawn), _LOW**2) / _SIDE
        self.lengths = np.log([seconds for _, _, seconds in drawn])

    def find_nearest(self, other: "_Table") -> dict[int, tuple[float, int]]:
        """Return difference and position of the nearest near-duplicate of each recording that has one.

        Args:
            other: Recordings to look among; of the same ones, those before each.
        """
        best: dict[int, tuple[float, int]] = {}
        squares = (other.low**2).sum(1)
        with LoggedProgress(len(self.positions), "Near-duplicates", "recording") as bar:
            for begin in range(0, len(self.positions), _CHUNK):
                some = self.low[begin : begin + _CHUNK]
                apart = (some**2).sum(1)[:, None] + squares - 2 * some @ other.low.T
                ratio = np.abs(self.lengths[begin : begin + _CHUNK, None] - other.lengths)
                rows, columns = np.nonzero((apart <= DIFFERENCE**2 + 1e-4) & (ratio <= np.log1p(LENGTHS)))
                for k, j in zip((rows + begin).tolist(), columns.tolist(), strict=True):
                    if other is self and j >= k:
                        continue
                    difference = float(np.sqrt(((self.thumbnails[k] - other.thumbnails[j]) ** 2).mean()))
                    if difference <= DIFFERENCE:
                        i, found = self.positions[k], (difference, other.positions[j])
                        best[i] = min(best.get(i, found), found)
                bar.update(len(some))
        return best
