"""Cache of decoded recordings on disk: each file is decoded once, and later epochs and runs read a memory-mapped file.

A cache is two files named by its key, a SHA-256 of all that its samples depend on: `KEY.f32` holds the samples of all
recordings, one after the other, and `KEY.json` where each lies, its checksum, and facts about it or why it cannot be
read. The second is written after the first is complete and on disk, so that a killed process leaves no half cache.
Each recording is compared with its checksum when a process first reads it; a damaged one is decoded from its file.
"""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sft_lightning.data.audio.decoding import Samples, SoundFacts, decode, get_versions, inspect_header
from sft_lightning.data.bad_examples import UNREADABLE, describe_read_error
from sft_lightning.data.decoded_cache import make_key, refuse_folder, report_damage, report_wait, reserve_room
from sft_lightning.utils.atomic import hold_lock, open_atomic, write_json
from sft_lightning.utils.json_files import read_json_object
from sft_lightning.utils.progress_lines import LoggedProgress

_THREADS, _MOST = 8, 512  # and the largest number of recordings that wait for the first of them
_AT_ONCE = 2**26  # samples in memory, of all threads
_Inspected = SoundFacts | str


class RecordingCache:
    """Decoded recordings of a collection of files.

    Attributes:
        found: Facts about each recording, or the reason why it cannot be read.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], ids: Sequence[str], rate: int) -> None:
        """Open the cache, or make it; another process that makes it is waited for.

        Args:
            folder: Folder of caches.
            paths: Paths of the files.
            ids: Names of the files.
            rate: Sample rate in Hz.

        Raises:
            InputError: The disk is too full, or the folder cannot be written to.
        """
        name = make_key((get_versions(), rate), paths, ids)
        self._data, self._index = folder / f"{name}.f32", folder / f"{name}.json"
        self._map: Any = None
        if not self._load():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"{name}.lock").open("ab") as lock, hold_lock(lock, report_wait):
                    if not self._load():
                        self._make(paths, rate)
            except OSError as error:
                raise refuse_folder(folder, error) from error

    def _load(self) -> bool:
        """Read the index, and return whether it and the samples are there."""
        if not self._index.is_file() or not self._data.is_file():
            return False
        rows = read_json_object(self._index, "remove it").get("recordings", [])
        self.found: list[_Inspected] = [row if isinstance(row, str) else SoundFacts(*row[0]) for row in rows]
        self._sums = [0 if isinstance(row, str) else int(row[1]) for row in rows]
        self._starts = np.cumsum([0, *map(_count, self.found)], dtype=np.int64)
        self._checked = np.zeros(len(rows), np.bool_)
        return self._data.stat().st_size == 4 * int(self._starts[-1])

    def _make(self, paths: Sequence[Path], rate: int) -> None:
        headers = inspect_all(paths, rate)
        reserve_room(self._data.parent, 4 * sum(map(_count, headers)), len(paths), "", "recordings")
        rows: list[Any] = []
        with open_atomic(self._data) as path, path.open("wb") as file:
            for found in decode_all(paths, rate, headers):
                if isinstance(found, str):
                    rows.append(found)
                    continue
                samples, facts = found
                content = samples.tobytes()
                file.write(content)
                rows.append([facts, zlib.crc32(content)])
        what = "decoded recordings, made by sft-lightning; may be removed when no run uses them"
        write_json(self._index, {"what": what, "rate": rate, "recordings": rows})
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory map, which each worker opens itself."""
        return {**vars(self), "_map": None}

    def read(self, number: int) -> Samples | None:
        """Return the samples of a recording as a view of the memory map; None if they are damaged.

        Args:
            number: Position of the recording.
        """
        if self._map is None:
            self._map = np.memmap(self._data, np.float32, "r")
        samples: Samples = self._map[self._starts[number] : self._starts[number + 1]]
        if not self._checked[number]:
            if zlib.crc32(samples.data) != self._sums[number]:
                report_damage(self._data)
                return None
            self._checked[number] = True
        return samples


def decode_all(
    paths: Sequence[Path], rate: int, headers: Sequence[_Inspected]
) -> Iterator[tuple[Samples, SoundFacts] | str]:
    """Decode files in parallel, and yield each in its order, or the reason why it cannot be read.

    Args:
        paths: Paths of the files.
        rate: Sample rate in Hz.
        headers: What `inspect_all` says of them, by which memory is limited.
    """

    def look(path: Path) -> tuple[Samples, SoundFacts] | str:
        try:
            return decode(path, rate)
        except UNREADABLE as error:
            return describe_read_error(error)

    with ThreadPoolExecutor(_THREADS) as threads, LoggedProgress(len(paths), "Decoding", "file") as bar:
        first = 0
        while first < len(paths):
            last, total = first + 1, _count(headers[first])
            while last < len(paths) and last - first < _MOST and (total := total + _count(headers[last])) <= _AT_ONCE:
                last += 1
            for found in threads.map(look, paths[first:last]):
                bar.update()
                yield found
            first = last


def _count(inspected: _Inspected) -> int:
    return 0 if isinstance(inspected, str) else inspected.samples


def inspect_all(paths: Sequence[Path], rate: int) -> list[_Inspected]:
    """Return what the header of each file says, or the reason why it cannot be read.

    Args:
        paths: Paths of the files.
        rate: Sample rate in Hz to which they are converted.
    """

    def look(path: Path) -> _Inspected:
        try:
            return inspect_header(path, rate)
        except UNREADABLE as error:
            return describe_read_error(error)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(look, paths))
