"""Cache of decoded images on disk: each file is decoded once, and later epochs and runs read a memory-mapped file.

A cache is three files named by its key, a SHA-256 of all that its images depend on: `KEY.u8` has a row of pixels for
each file of the source, `KEY.rows` marks the stored rows, with a checksum, and `KEY.json` describes the cache.

Rows are filled when a run first needs them, so that a run with 100 labels decodes 100 files of a million, and the next
run only those that are new to it. A row counts as stored only after its pixels are on disk. If a process is killed
while it fills a cache, no incomplete row is used, no temporary file remains, and the next process continues. Each row
is compared with its checksum when a process first reads it; a damaged row is decoded from its file again.
"""

import math
import os
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.bad_examples import UNREADABLE, BadFiles, describe_read_error
from sft_lightning.data.decoded_cache import make_key, refuse_folder, report_damage, report_wait, reserve_room
from sft_lightning.data.vision.images import DECODING, FileImages, Geometry, cut_out, open_image
from sft_lightning.utils.atomic import hold_lock, write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.progress_lines import LoggedProgress

_ROW = np.dtype([("sum", "<u4"), ("width", "<u4"), ("height", "<u4")])  # of the decoded file; 0: not stored
_SYNC = 60.0  # seconds of work that a killed process may lose
_BATCH = 16  # files that a worker decodes before it answers
_DETAIL = 2  # pixels of a stored image per pixel of a random crop
_Found = tuple[int, int, int] | str | OSError


class ImageCache:
    """Decoded images of all files of a source in one geometry.

    With a central crop, a row equals the image that is decoded without a cache. With random crops (`Geometry.scale`),
    a row is the whole image, stretched to a square with twice as many pixels as a crop: crops are the same rectangles
    as without a cache, but are taken from an image that was already resized once.
    """

    def __init__(self, folder: Path, files: FileImages, geometry: Geometry) -> None:
        """Compute the key; nothing is decoded or written.

        Args:
            folder: Folder of caches, which may hold those of other sources and geometries.
            files: Files whose names and contents are part of the key.
            geometry: Geometry by which files are decoded.
        """
        self.files = files
        self.whole = geometry.scale is not None
        side = math.ceil(geometry.size * math.sqrt(_DETAIL)) if self.whole else geometry.size
        self.geometry = replace(geometry, size=side, scale=None, center=1.0 if self.whole else geometry.center)
        color = (geometry.channels,) if geometry.channels > 1 else ()
        self.shape = (side, side, *color) if self.whole else (geometry.channels, side, side)
        self.folder, self.key = folder, self._key()
        self._pixels_path, self._rows_path = folder / f"{self.key}.u8", folder / f"{self.key}.rows"

    def _key(self) -> str:
        versions = DECODING, PIL.__version__, features.version("jpg")
        return make_key((versions, self.geometry, self.whole, self.shape), self.files.paths, self.files.ids)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape)

    def _is_there(self) -> bool:
        """Return whether both files exist with the expected size."""
        sizes = (
            (self._pixels_path, len(self.files) * self._row_bytes),
            (self._rows_path, len(self.files) * _ROW.itemsize),
        )
        return all(path.is_file() and path.stat().st_size == size for path, size in sizes)

    @cached_property
    def _rows(self) -> NDArray[np.void]:
        return np.memmap(self._rows_path, _ROW, "r", shape=(len(self.files),))

    @cached_property
    def _pixels(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is never written to
            return torch.from_numpy(np.memmap(self._pixels_path, np.uint8, "r", shape=(len(self.files), *self.shape)))

    @cached_property
    def _checked(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.files), np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory maps, which each worker opens itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_rows", "_pixels", "_checked")}

    def row(self, number: int) -> tuple[Tensor, int, int] | None:
        """Return a stored image, and the width and height of the original; None if it is not stored.

        Args:
            number: Row of the file.

        Returns:
            The image as a view of the read-only memory map, width and height.
        """
        _, width, height = self._rows[number].item()
        if not width:
            return None
        pixels = self._pixels[number]
        return (pixels, width, height) if self._sound(number, pixels.numpy()) else None

    def _sound(self, number: int, pixels: NDArray[np.uint8]) -> bool:
        """Return whether pixels match their checksum, which each process compares once per row."""
        if not self._checked[number]:
            if zlib.crc32(pixels.data) != int(self._rows[number]["sum"]):
                self._forget(number)
                return False
            self._checked[number] = True
        return True

    def read_batch(self, numbers: NDArray[np.int64], pinned: bool) -> Tensor | None:
        """Read several images as one tensor; return None if one of them is not stored or is damaged.

        Args:
            numbers: Rows of the files, int64 of shape (B,).
            pinned: Whether to read into pinned memory, from which a GPU copies faster.
        """
        if not bool((self._rows["width"][numbers] > 0).all()):
            return None
        made = torch.empty((len(numbers), *self.shape), dtype=torch.uint8, pin_memory=pinned)
        if bool(self._checked[numbers].all()):
            return torch.index_select(self._pixels, 0, torch.from_numpy(numbers), out=made)

        rows, pixels = made.numpy(), self._pixels.numpy()  # torch would start its own threads in each thread

        def copied(part: NDArray[np.int64]) -> bool:
            rows[part] = pixels[numbers[part]]
            return all(self._sound(int(numbers[k]), rows[k]) for k in part)

        count = count_cores() // 2  # with two cores, a second thread costs more time than it saves
        if count < 2:
            return made if copied(np.arange(len(numbers))) else None
        with ThreadPoolExecutor(count) as threads:
            parts = np.array_split(np.arange(len(numbers)), 4 * count)
            return made if all(threads.map(copied, parts)) else None

    def _forget(self, number: int) -> None:
        report_damage(self._pixels_path)
        with suppress(OSError), self._rows_path.open("r+b", buffering=0) as file:  # so that the next run stores it
            _write(file, number, bytes(_ROW.itemsize))

    # --- filling

    def fill(self, rows: NDArray[np.int64], workers: int, bad: BadFiles) -> None:
        """Decode the files that are not stored yet, or wait for another process that does.

        The lock is that of the file system (`flock`): processes of one machine wait for each other, and so do machines
        that share a file system with locks (NFS 4, Lustre with `flock`). Machines with local disks each fill their own
        cache.

        Args:
            rows: Rows of the files that are needed.
            workers: Number of processes that decode.
            bad: Record that unreadable files are reported to; these are never stored.

        Raises:
            InputError: The disk is too full, the folder cannot be written to, or a file cannot be decoded and
                the policy is `raise`.
        """
        if self._is_there() and not len(self._missing(rows)):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._rows_path.open("ab"):  # creates it
                pass
            with self._rows_path.open("r+b", buffering=0) as file, hold_lock(file, report_wait):
                self._prepare(file)
                missing = self._missing(rows)
                if len(missing):
                    need, size = len(missing) * self._row_bytes, " x ".join(map(str, self.shape))
                    reserve_room(self.folder, need, len(missing), f" of {size} bytes", "images")
                    self._store(missing, file, workers if len(missing) > _BATCH else 0, bad)
        except OSError as error:
            raise refuse_folder(self.folder, error) from error

    def _missing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        stored: NDArray[np.bool_] = self._rows["width"][rows] > 0
        return rows[~stored]

    def _prepare(self, rows: FileIO) -> None:
        """Create the files if they are missing or have the wrong size; other processes may still read the old ones."""
        if self._is_there():
            return
        size = len(self.files) * _ROW.itemsize
        if rows.seek(0, os.SEEK_END) != size:
            rows.truncate(0)
            rows.truncate(size)
        else:
            _write(rows, 0, bytes(size))
        os.fsync(rows.fileno())
        self._pixels_path.unlink(missing_ok=True)  # a process that has mapped the file keeps it
        with self._pixels_path.open("wb") as file:
            file.truncate(len(self.files) * self._row_bytes)
        purpose = {"what": "decoded images, made by sft-lightning; may be removed when no run uses them"}
        shape = {"files": len(self.files), "shape": self.shape, "whole": self.whole, "geometry": repr(self.geometry)}
        write_json(self.folder / f"{self.key}.json", {**purpose, **shape, "first": self.files.ids[:1]})
        for name in ("_rows", "_pixels", "_checked"):
            vars(self).pop(name, None)

    def _store(self, missing: NDArray[np.int64], rows: FileIO, workers: int, bad: BadFiles) -> None:
        loader: DataLoader[Any] = DataLoader(
            _Storing(self, missing),
            batch_size=_BATCH,
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # workers need no random numbers, and their seed would move the global state
        )
        bar = LoggedProgress(len(missing), "Decoding", "file")
        done: list[tuple[int, _Found]] = []
        with self._pixels_path.open("r+b", buffering=0) as pixels, bar:

            def keep() -> None:
                os.fsync(pixels.fileno())  # pixels first, so that no row is marked as stored before it is on disk
                for number, found in done:
                    _write(rows, number, np.array(found, _ROW).tobytes())
                os.fsync(rows.fileno())
                done.clear()

            last = time.monotonic()
            try:
                for items in loader:
                    for number, found in items:
                        if isinstance(found, OSError):
                            raise found
                        if isinstance(found, str):
                            bad.report(self.files.paths[number], found)
                        else:
                            done.append((number, found))
                    bar.update(len(items))
                    if time.monotonic() - last > _SYNC:
                        keep()
                        last = time.monotonic()
            finally:
                keep()

    def decode_into(self, number: int, write: Callable[[int, bytes], None]) -> _Found:
        """Decode a file into its row.

        Args:
            number: Row of the file.
            write: Function that writes the pixels of a row.

        Returns:
            Checksum, width and height of the image, the reason why it cannot be read, or the error of the write.
        """
        try:
            own = self.geometry
            image = open_image(self.files.paths[number], own.channels, own.background, own.enough, own.ranges)
            box = own.box(image.width, image.height, None)
            if self.whole:
                box = (0, 0, image.width, image.height)
            decoded = cut_out(image, own.size, box, own.background)
        except UNREADABLE as error:
            return describe_read_error(error)
        pixels = (decoded.permute(1, 2, 0) if self.whole else decoded).contiguous().numpy().tobytes()
        try:
            write(number, pixels)
        except OSError as error:
            return error
        return zlib.crc32(pixels), image.width, image.height


class _Storing(Dataset[Any]):
    """Data set that decodes files in a worker and writes their pixels there."""

    def __init__(self, cache: ImageCache, missing: NDArray[np.int64]) -> None:
        self._cache, self._missing = cache, missing

    def __len__(self) -> int:
        return len(self._missing)

    def __getitem__(self, k: int) -> tuple[int, _Found]:
        number = int(self._missing[k])
        return number, self._cache.decode_into(number, self._write)

    def _write(self, number: int, pixels: bytes) -> None:
        with self._cache._pixels_path.open("r+b", buffering=0) as file:
            _write(file, number, pixels)


def _write(file: FileIO, row: int, content: bytes) -> None:
    file.seek(row * len(content))
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
