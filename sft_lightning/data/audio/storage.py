"""Storage of recordings: files that are decoded, or come from a cache, and are cut into windows."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sft_lightning.data.audio.decoding import Samples, SoundFacts, decode
from sft_lightning.data.audio.recording_cache import RecordingCache, decode_all, inspect_all
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.storage import Storage

MOST_WINDOWS = 4  # of a recording in evaluation, unless the user sets a number


@dataclass(frozen=True)
class Windows:
    """Settings by which a recording becomes windows of one length.

    A recording that is shorter than a window is followed by silence (zeros).

    Attributes:
        samples: Length S of a window in samples.
        count: Number W of windows in evaluation, at equal distances from the first to the last possible one.
        drawn: Number W of windows in training, at random places.
    """

    samples: int
    count: int = 1
    drawn: int = field(default=1, repr=False)  # decides nothing about what an example is

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (W, S) of an example in evaluation."""
        return self.count, self.samples

    def cut(self, x: Samples, seed: int | None) -> Tensor:
        """Return windows of a recording, float32, (W, S).

        Args:
            x: Samples of the recording, (N,).
            seed: Seed of the random windows of training; None for those of evaluation.
        """
        last = max(0, len(x) - self.samples)  # start of the last window
        if seed is not None:
            draw = random.Random(seed)
            starts = [draw.randint(0, last) for _ in range(self.drawn)]
        else:
            starts = [round(last * k / max(1, self.count - 1)) for k in range(self.count)]
        made = np.zeros((len(starts), self.samples), np.float32)
        for row, start in zip(made, starts, strict=True):
            piece = x[start : start + self.samples]
            row[: len(piece)] = piece
        return torch.from_numpy(made)


class Recordings(FileStorage):
    """Recordings as files, decoded when they are read, or once for all into a cache.

    Attributes:
        facts: Facts about each readable recording, after they were inspected.
    """

    facts: list[SoundFacts] | None = None

    def __init__(self, paths: Sequence[Path], ids: Sequence[str], rate: int, cache: Path | None = None) -> None:
        """Keep the list; nothing is read.

        Args:
            paths: Paths of the files.
            ids: Names of the files in manifests and messages, the same on every machine.
            rate: Sample rate in Hz to which they are converted.
            cache: Folder of caches, or None.
        """
        super().__init__(paths, ids)
        self.rate, self._folder = rate, cache
        self._cached: list[tuple[RecordingCache, int] | None] = [None] * len(self.paths)

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> Self:
        """Return some recordings of several collections as one."""
        stored = [(one, chosen) for one, chosen in pieces if isinstance(one, Recordings)]
        first = stored[0][0]
        made = cls([one.paths[i] for one, chosen in stored for i in chosen], ids, first.rate, first._folder)
        made._cached = [one._cached[i] for one, chosen in stored for i in chosen]
        return made

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Inspect recordings, and keep facts about the readable ones in `facts`.

        Args:
            indices: Positions of the recordings to check.
            measures: Whether to decode them, into the cache if there is one; their headers alone otherwise.
        """
        order = list(indices)
        paths = [self.paths[i] for i in order]
        if not measures:
            found = inspect_all(paths, self.rate)
        elif self._folder is None:
            headers = inspect_all(paths, self.rate)
            found = [one if isinstance(one, str) else one[1] for one in decode_all(paths, self.rate, headers)]
        else:
            cache = RecordingCache(self._folder, paths, [self.ids[i] for i in order], self.rate)
            found = cache.found
            for number, i in enumerate(order):
                self._cached[i] = cache, number
        self.facts = [one for one in found if not isinstance(one, str)]
        return {i: one for i, one in zip(order, found, strict=True) if isinstance(one, str)}

    def count_samples(self, indices: Iterable[int]) -> list[int]:
        """Return the number of samples of recordings at the common rate, as their headers tell it; 0 for broken ones.

        Args:
            indices: Positions of the recordings.
        """
        found = inspect_all([self.paths[i] for i in indices], self.rate)
        return [0 if isinstance(one, str) else one.samples for one in found]

    def count_decoded(self, indices: Sequence[int], settings: Windows) -> int:
        """Return the bytes of the samples of some recordings."""
        return 4 * sum(self.count_samples(indices))

    def is_cached(self, indices: Iterable[int]) -> bool:
        """Return whether recordings come from a cache, so that reading them takes no time.

        Args:
            indices: Positions of the recordings.
        """
        return all(self._cached[i] is not None for i in indices)

    def read_samples(self, index: int) -> Samples:
        """Return all samples of a recording, float32, (N,).

        Args:
            index: Position of the recording.

        Raises:
            OSError: It cannot be decoded.
        """
        if (place := self._cached[index]) is not None:
            samples = place[0].read(place[1])
            if samples is not None:
                return samples
        return decode(self.paths[index], self.rate)[0]

    def read(self, index: int, settings: Windows, seed: int | None) -> Tensor:
        """Return windows of a recording, float32, (W, S)."""
        return settings.cut(self.read_samples(index), seed)
