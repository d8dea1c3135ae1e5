"""Shards: a source that packs many images into few files, read by index, with all else in memory-mapped columns.

litdata packs the images and reads them by index. The order of the images comes from this package (`batch_sampling`,
`sample_orders`), as for every other source, because the loaders of the libraries guarantee less. As of litdata 0.2.76
and webdataset 1.0.2: webdataset reads tar files from the beginning and has no state to resume from. litdata's loader
resumes exactly and repeats nothing with another number of workers, but the content of a batch changes with that number,
and it mixes two streams at random where a batch needs a fixed number of labeled and unlabeled examples. Neither library
knows splits or the number of examples per class. A batch plan that is a pure function of (seed, index of the batch,
rank, world size) over examples read by index provides all of that; litdata's reader takes 45 µs per image. All ranks
read all shards of the window: each machine fetches the complete data in a pass.

A folder of shards holds `shards.json`, written last, and one folder for each of train, val, test and unlabeled:

    index.json, chunk-0-*.bin                   litdata's files, with the unchanged bytes of the images
    labels.bin, sizes.bin, hashes.bin           int64, int64 and SHA-256 of each image
    ids.bin, ids.ends.bin                       names; also groups.bin and groups.ends.bin, if there are groups
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.data.mmap_columns import NumberColumn, TextColumn
from sft_lightning.data.sample_orders import Windowed
from sft_lightning.data.source import SPLITS, Examples, is_whole
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.images import EncodedImages
from sft_lightning.data.vision.value_ranges import parse_ranges
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

INDEX = "shards.json"
FORMAT = "sft-lightning shards 1"
_CHUNK = re.compile(r"chunk-\d+-\d+\.bin")
_LEAF = [1, {"type": None, "context": None, "children_spec": []}]
# Only this configuration is accepted: other formats of litdata are pickles, which can run code.
_CONFIG = {"compression": None, "encryption": None, "data_format": ["bytes"], "item_loader": "PyTreeLoader"}


def require_litdata(what: str) -> None:
    """Check that litdata is installed.

    Args:
        what: Subject of the error message, which needs litdata.

    Raises:
        InputError: litdata is not installed.
    """
    if find_spec("litdata") is None:
        raise InputError(f"{what} needs the extra 'stream': pip install 'sft-lightning[stream]'")


class Shards:
    """Storage of one split, read by index. Each process, and each of its forks, opens its own reader."""

    def __init__(self, folder: Path, count: int, digest: str) -> None:
        """Check the index and the sizes of the files; no image is read.

        Args:
            folder: Path of the folder of the split.
            count: Number of images.
            digest: SHA-256 of names and images.

        Raises:
            InputError: The index is invalid, or a file is missing or of another size.
        """
        self.folder, self.count, self.digest = folder, count, digest
        lengths = self._check_index()
        if sum(lengths) != count:
            raise InputError(f"{str(folder / 'index.json')!r} has {sum(lengths)} images, not {count}: {_REMEDY}")
        self.starts = np.cumsum([0, *lengths])
        for name, size in (("labels", 8), ("sizes", 8), ("hashes", 32), ("ids.ends", 8)):
            path = folder / f"{name}.bin"
            if not path.is_file() or path.stat().st_size != size * count:
                raise InputError(f"{str(path)!r} does not hold {count} entries: {_REMEDY}")
        self.sizes, self.hashes = NumberColumn(folder / "sizes.bin", "<i8"), NumberColumn(folder / "hashes.bin", "V32")
        _import_litdata()  # takes seconds: done here, so that processes forked later inherit it
        self._reader: Any = None
        self._opened_by = 0
        self._lock = threading.Lock()

    def _check_index(self) -> list[int]:
        """Return the number of images in each shard."""
        path = self.folder / "index.json"
        index = _read_json(path)
        config, chunks = index.get("config"), index.get("chunks")
        if not isinstance(config, dict) or not isinstance(chunks, list) or not chunks:
            raise InputError(f"{str(path)!r} is not an index of shards: {_REMEDY}")
        wrong = [name for name, value in _CONFIG.items() if config.get(name) != value]
        if wrong or _parse_json(config.get("data_spec")) != _LEAF:
            key = wrong[0] if wrong else "data_spec"
            value = config.get(key)
            raise InputError(f"{str(path)!r} has {key} {value!r}, which scripts/shard does not write: {_REMEDY}")
        for chunk in chunks:
            name = chunk.get("filename") if isinstance(chunk, dict) else None
            numbers = [chunk.get(key) for key in ("chunk_size", "chunk_bytes")] if isinstance(chunk, dict) else []
            has_numbers = all(type(n) is int and n > 0 for n in numbers)
            if not isinstance(name, str) or not _CHUNK.fullmatch(name) or not has_numbers:
                raise InputError(f"{str(path)!r} lists a shard {name!r}, which scripts/shard does not write: {_REMEDY}")
            file = self.folder / str(name)
            if not file.is_file() or file.stat().st_size != numbers[1]:
                raise InputError(
                    f"shard {str(file)!r} is missing or not {numbers[1]} bytes long: copy it, or {_REMEDY}"
                )
        return [int(chunk["chunk_size"]) for chunk in chunks]

    def find_shards(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of the shard of each image.

        Args:
            indices: Indices of images in the split, of shape (N,).
        """
        return np.searchsorted(self.starts, indices, "right") - 1

    def read(self, index: int) -> bytes:
        """Read the stored bytes of an image.

        Args:
            index: Index of the image in the split.

        Raises:
            OSError: The shard is damaged.
        """
        shard = int(self.find_shards(np.asarray(index)))
        with self._lock:  # the reader has one shard open at a time
            try:
                return bytes(
                    self._open_reader()[_import_litdata()[1](index, shard)]
                )  # a copy: the file is unmapped later
            except Exception as error:  # damaged bytes may raise anything
                raise OSError(f"shard {shard} of '{self.folder}' is damaged ({type(error).__name__})") from error

    def _open_reader(self) -> Any:
        if self._reader is None or self._opened_by != os.getpid():
            # By default the reader decodes 256 images around each one, eleven times slower in shuffled order.
            self._reader, self._opened_by = _import_litdata()[0](str(self.folder), batch_decode=0), os.getpid()
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


_REMEDY = "make the shards again"


@cache
def _import_litdata() -> tuple[Any, Any]:
    """Return litdata's reader and its type of an image's index."""
    from litdata import StreamingDataset
    from litdata.streaming.sampler import ChunkedIndex

    return StreamingDataset, ChunkedIndex


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path, _REMEDY)
    return content if isinstance(content, dict) else {}


def _parse_json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


class ShardImages(EncodedImages):
    """Concatenation of selected images of one or more splits in shards."""

    def __init__(self, *pieces: tuple[Shards, Sequence[int]], ids: Sequence[str]) -> None:
        """Join the images; nothing is read.

        Args:
            pieces: Pairs of shards and the indices of the images to take from them.
            ids: Names of the images, for messages.
        """
        self._pieces, self._ids = pieces, ids
        self._stops = np.cumsum([len(chosen) for _, chosen in pieces])

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def _find(self, index: int) -> tuple[Shards, int]:
        k = int(np.searchsorted(self._stops, index, "right"))
        shards, chosen = self._pieces[k]
        return shards, int(chosen[index - (int(self._stops[k - 1]) if k else 0)])

    def file(self, index: int) -> BytesIO:
        """Return the bytes of an image."""
        shards, local = self._find(index)
        return BytesIO(shards.read(local))

    def path_of(self, index: int) -> Path:
        """Return the folder of the shards joined with the name of the image."""
        return self._find(index)[0].folder / self._ids[index]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Return nothing: the images were checked when the shards were made, and reading all would delay the start."""
        return {}

    def _split_up(self, indices: Sequence[int]) -> Iterable[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Yield for each piece its number, the indices in its shards, and a mask of the indices that are in it."""
        wanted = np.asarray(indices, dtype=np.int64)
        owner = np.searchsorted(self._stops, wanted, "right")
        for k, (_, chosen) in enumerate(self._pieces):
            mine = owner == k
            local = wanted[mine] - (int(self._stops[k - 1]) if k else 0)
            yield k, local if isinstance(chosen, range) else np.asarray(chosen, dtype=np.int64)[local], mine

    def sizes(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the size of each image in bytes, from the column."""
        sizes = np.zeros(len(indices), np.int64)
        for k, local, mask in self._split_up(indices):
            sizes[mask] = self._pieces[k][0].sizes.values[local]
        return sizes

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Return the SHA-256 of the bytes of each image, from the column."""
        wanted = list(indices)
        hashes = np.zeros(len(wanted), "V32")
        for k, local, mask in self._split_up(wanted):
            hashes[mask] = self._pieces[k][0].hashes.values[local]
        return [one.tobytes() for one in hashes]

    def digest(self) -> str:
        """Return the SHA-256 of the names and bytes of all images, computed when the shards were made."""
        digests = [
            shards.digest if is_whole(chosen, shards.count) else f"{shards.digest} of {np.asarray(chosen).tolist()}"
            for shards, chosen in self._pieces
        ]
        return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "ShardImages":
        """Join selected images of one or more splits without a copy; indices of each are in ascending order."""
        in_shards = [(images, chosen) for images, chosen in pieces if isinstance(images, ShardImages)]
        return cls(*(piece for images, chosen in in_shards for piece in images._select(chosen)), ids=ids)

    def _select(self, indices: Sequence[int]) -> list[tuple[Shards, Sequence[int]]]:
        parts = ((self._pieces[k][0], local) for k, local, _ in self._split_up(indices))
        return [(shards, _pack(local)) for shards, local in parts if len(local)]

    def pass_order(self, indices: Sequence[int], window: int) -> Callable[[int], Windowed] | None:
        """Return how passes over some images are ordered; None if they are in so few shards that any order will do.

        Args:
            indices: Positions of the images, in ascending order.
            window: Number of shards whose images are shuffled together.
        """
        lengths = self.count_runs(indices)
        return None if len(lengths) <= window else partial(Windowed, lengths, window)

    def count_runs(self, indices: Sequence[int]) -> Tensor:
        """Count consecutive images in the same shard, int64 of shape (number of runs,).

        Args:
            indices: Indices of images in ascending order.
        """
        number = np.zeros(len(indices), np.int64)
        first = 0
        for k, local, mask in self._split_up(indices):
            shards = self._pieces[k][0]
            number[mask] = first + shards.find_shards(local)
            first += len(shards.starts)
        edges = np.flatnonzero(np.diff(number)) + 1
        return torch.from_numpy(np.diff(np.concatenate([[0], edges, [len(number)]])))


def _pack(indices: npt.NDArray[np.int64]) -> Sequence[int]:
    """Return consecutive indices as a range, which takes less memory, and others unchanged."""
    first, last = int(indices[0]), int(indices[-1])
    is_range = last - first + 1 == len(indices) and bool((np.diff(indices) == 1).all())
    return range(first, last + 1) if is_range else indices  # type: ignore[return-value]


class ShardSource(ImageSource):
    """Source in a folder of shards that `scripts/shard` wrote."""

    def __init__(self, path: Path) -> None:
        """Read the index of the shards.

        Args:
            path: Path of the folder with `shards.json`.

        Raises:
            InputError: The folder is damaged or of another version, or litdata is not installed.
        """
        self.path, self.name = path, str(path)
        require_litdata(f"source {self.name!r}, which is made of shards,")
        index = _read_json(path / INDEX)
        names, shape, parts = (index.get(key) for key in ("class_names", "image_shape", "parts"))
        is_valid = (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and (shape is None or (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)))
            and isinstance(parts, dict)
            and parts
            and all(name in SPLITS and isinstance(part, dict) for name, part in parts.items())
            and all(type(part.get("count")) is int and isinstance(part.get("sha256"), str) for part in parts.values())
        )
        if index.get("format") != FORMAT or not is_valid:
            raise InputError(f"{str(path / INDEX)!r} does not have the format {FORMAT!r}: {_REMEDY}")
        self.class_names = tuple(names)  # type: ignore[arg-type]
        self.image_shape = None if shape is None else (shape[0], shape[1], shape[2])
        self.value_ranges = parse_ranges(index.get("value_ranges"), str(path / INDEX))
        assert isinstance(parts, dict)
        self._parts: dict[str, dict[str, Any]] = {name: parts[name] for name in SPLITS if name in parts}

    def load(self) -> dict[str, Examples]:
        """Map the columns of each split; no image is read."""
        return {name: self._open_part(self.path / name, entry) for name, entry in self._parts.items()}

    def _open_part(self, folder: Path, entry: dict[str, Any]) -> Examples:
        count = entry["count"]
        shards = Shards(folder, count, entry["sha256"])
        ids = TextColumn(folder / "ids.bin")
        # Memory-mapped, so that they do not take memory in each process.
        labels = torch.from_file(str(folder / "labels.bin"), shared=False, size=count, dtype=torch.long)
        if labels.min() < -1 or labels.max() >= len(self.class_names):
            raise InputError(f"{str(folder / 'labels.bin')!r} has labels beyond the classes: {_REMEDY}")
        groups = TextColumn(folder / "groups.bin") if entry.get("groups") else None
        return Examples(ShardImages((shards, range(count)), ids=ids), ids, labels, groups)
