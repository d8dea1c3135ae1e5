"""Shards: a source of many images in few files, read by number, with everything else about them in mapped columns.

Reading is litdata's: its files of packed images, its reader by number. Which image comes next is ours (`plans.py`,
`orders.py`), as for every other source, because the libraries' own loaders promise less. Seen with litdata 0.2.76 and
webdataset 1.0.2: webdataset reads tar files from the beginning and has no state to resume from. litdata's loader
resumes exactly, and repeats nothing with another number of workers; but what a batch holds changes with that number,
two streams are mixed at random where a batch needs so many labeled and so many unlabeled examples, and neither library
knows of splits or can say how many examples a class has. A plan that is a pure function of (seed, number of the batch,
rank, world size) over examples that are read by number has all of that for nothing; it costs 45 µs an image with
litdata's reader. All ranks read all shards of the window: each machine fetches the whole data in a pass.

A folder of shards holds `shards.json`, written last, and one folder for each of train, val, test and unlabeled:

    index.json, chunk-0-*.bin                   litdata's, of the images' bytes as they are
    labels.bin, sizes.bin, hashes.bin           int64, int64 and SHA-256 of each image
    ids.bin, ids.ends.bin                       names; groups.bin, too, where there are some
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
from sft_lightning.data.source import SPLITS, Examples, Source
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.images import EncodedImages, Images
from sft_lightning.data.vision.value_ranges import parse_ranges
from sft_lightning.utils.errors import InputError

INDEX = "shards.json"
FORMAT = "sft-lightning shards 1"
_CHUNK = re.compile(r"chunk-\d+-\d+\.bin")
_LEAF = [1, {"type": None, "context": None, "children_spec": []}]
# All that the reader is told; other formats of litdata's are pickles, which run code.
_CONFIG = {"compression": None, "encryption": None, "data_format": ["bytes"], "item_loader": "PyTreeLoader"}


def require_litdata(what: str) -> None:
    """Makes sure that litdata is installed.

    Args:
        what: Needs it.

    Raises:
        InputError: It is not.
    """
    if find_spec("litdata") is None:
        raise InputError(f"{what} needs the extra 'stream': pip install 'sft-lightning[stream]'")


class Shards:
    """The images of one part, read by number: each process and each of its forks has a reader of its own."""

    def __init__(self, folder: Path, count: int, digest: str) -> None:
        """Checks the index and the sizes of the files; no image is read.

        Args:
            folder: Of the part.
            count: Of images.
            digest: SHA-256 of names and images.

        Raises:
            InputError: The index is none, or a file is missing or of another size.
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
        _import_litdata()  # takes seconds: here, so that processes that are forked later have it
        self._reader: Any = None
        self._opened_by = 0
        self._lock = threading.Lock()

    def _check_index(self) -> list[int]:
        """Images of each shard."""
        path = self.folder / "index.json"
        found = _read_json(path)
        config, chunks = found.get("config"), found.get("chunks")
        if not isinstance(config, dict) or not isinstance(chunks, list) or not chunks:
            raise InputError(f"{str(path)!r} is no index of shards: {_REMEDY}")
        wrong = [name for name, value in _CONFIG.items() if config.get(name) != value]
        if wrong or _parse_json(config.get("data_spec")) != _LEAF:
            key = wrong[0] if wrong else "data_spec"
            value = config.get(key)
            raise InputError(f"{str(path)!r} has {key} {value!r}, which scripts/shard does not write: {_REMEDY}")
        for chunk in chunks:
            name = chunk.get("filename") if isinstance(chunk, dict) else None
            numbers = [chunk.get(key) for key in ("chunk_size", "chunk_bytes")] if isinstance(chunk, dict) else []
            good = isinstance(name, str) and _CHUNK.fullmatch(name) and all(type(n) is int and n > 0 for n in numbers)
            if not good:
                raise InputError(f"{str(path)!r} names a shard {name!r}, which scripts/shard does not write: {_REMEDY}")
            file = self.folder / str(name)
            if not file.is_file() or file.stat().st_size != numbers[1]:
                raise InputError(f"shard {str(file)!r} is missing or not of {numbers[1]} bytes: copy it, or {_REMEDY}")
        return [int(chunk["chunk_size"]) for chunk in chunks]

    def find_shards(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the shard that each image is in.

        Args:
            indices: In the part.
        """
        return np.searchsorted(self.starts, indices, "right") - 1

    def read(self, index: int) -> bytes:
        """An image as it is stored.

        Args:
            index: In the part.

        Raises:
            OSError: The shard is damaged.
        """
        shard = int(self.find_shards(np.asarray(index)))
        with self._lock:  # the reader has one shard open at a time
            try:
                return bytes(
                    self._open_reader()[_import_litdata()[1](index, shard)]
                )  # a copy: the file is unmapped later
            except Exception as error:  # whatever it makes of damaged bytes
                raise OSError(f"shard {shard} of '{self.folder}' is damaged ({type(error).__name__})") from error

    def _open_reader(self) -> Any:
        if self._reader is None or self._opened_by != os.getpid():
            # One image at a time: by default it decodes 256 around each, eleven times slower in shuffled order.
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
    """The reader, and the number of an image as it wants it."""
    from litdata import StreamingDataset
    from litdata.streaming.sampler import ChunkedIndex

    return StreamingDataset, ChunkedIndex


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): {_REMEDY}") from error
    return found if isinstance(found, dict) else {}


def _parse_json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


class ShardImages(EncodedImages):
    """Some images of each of several parts in shards, one after the other."""

    def __init__(self, *pieces: tuple[Shards, Sequence[int]], ids: Sequence[str]) -> None:
        """Joins them; nothing is read.

        Args:
            pieces: Shards, and which of their images.
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
        """The bytes of an image."""
        shards, own = self._find(index)
        return BytesIO(shards.read(own))

    def place(self, index: int) -> Path:
        """The folder of the shards, and the name."""
        return self._find(index)[0].folder / self._ids[index]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """None: the images were looked at when the shards were made, and a start shall not read all of them."""
        return {}

    def _split_up(self, indices: Sequence[int]) -> Iterable[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Piece, images in its shards, and which of the indices they are."""
        wanted = np.asarray(indices, dtype=np.int64)
        owner = np.searchsorted(self._stops, wanted, "right")
        for k, (_, chosen) in enumerate(self._pieces):
            mine = owner == k
            local = wanted[mine] - (int(self._stops[k - 1]) if k else 0)
            yield k, local if isinstance(chosen, range) else np.asarray(chosen, dtype=np.int64)[local], mine

    def sizes(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Bytes of each image, from the column."""
        found = np.zeros(len(indices), np.int64)
        for k, own, mine in self._split_up(indices):
            found[mine] = self._pieces[k][0].sizes.values[own]
        return found

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """SHA-256 of the bytes of each image, from the column."""
        wanted = list(indices)
        found = np.zeros(len(wanted), "V32")
        for k, own, mine in self._split_up(wanted):
            found[mine] = self._pieces[k][0].hashes.values[own]
        return [one.tobytes() for one in found]

    def digest(self) -> str:
        """SHA-256 of the names and bytes of all images, as they were when the shards were made."""
        told = [
            shards.digest if len(chosen) == shards.count else f"{shards.digest} of {np.asarray(chosen).tolist()}"
            for shards, chosen in self._pieces
        ]
        return told[0] if len(told) == 1 else sha256("\n".join(told).encode()).hexdigest()

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Images, Sequence[int]]], ids: Sequence[str]) -> "ShardImages":
        """Some images of several parts, none of which is copied; each part's in ascending order."""
        own = [(images, chosen) for images, chosen in pieces if isinstance(images, ShardImages)]
        return cls(*(piece for images, chosen in own for piece in images._select(chosen)), ids=ids)

    def _select(self, indices: Sequence[int]) -> list[tuple[Shards, Sequence[int]]]:
        parts = ((self._pieces[k][0], own) for k, own, _ in self._split_up(indices))
        return [(shards, _pack(own)) for shards, own in parts if len(own)]

    def count_runs(self, indices: Sequence[int]) -> Tensor:
        """How many of some images follow each other in one shard, int64 of shape (S,).

        Args:
            indices: In ascending order.
        """
        number = np.zeros(len(indices), np.int64)
        first = 0
        for k, own, mine in self._split_up(indices):
            shards = self._pieces[k][0]
            number[mine] = first + shards.find_shards(own)
            first += len(shards.starts)
        edges = np.flatnonzero(np.diff(number)) + 1
        return torch.from_numpy(np.diff(np.concatenate([[0], edges, [len(number)]])))


def _pack(indices: npt.NDArray[np.int64]) -> Sequence[int]:
    """The same indices in less memory where they follow each other."""
    first, last = int(indices[0]), int(indices[-1])
    whole = last - first + 1 == len(indices) and bool((np.diff(indices) == 1).all())
    return range(first, last + 1) if whole else indices  # type: ignore[return-value]


def choose_pass_order(split: Split, window: int) -> Callable[[int], Windowed] | None:
    """How a split's passes are ordered; None where it is not in shards, or in so few that any order will do.

    Args:
        split: To train on.
        window: Shards whose examples are shuffled among each other.
    """
    images = split.part.images
    lengths = images.count_runs(split.indices) if isinstance(images, ShardImages) else torch.empty(0)
    return None if len(lengths) <= window else partial(Windowed, lengths, window)


class ShardSource(Source):
    """A folder that `scripts/shard` made."""

    def __init__(self, path: Path) -> None:
        """Reads what the shards hold.

        Args:
            path: The folder, with `shards.json`.

        Raises:
            InputError: It is damaged, of another version, or litdata is not installed.
        """
        self.path, self.name = path, str(path)
        require_litdata(f"source {self.name!r}, which is made of shards,")
        found = _read_json(path / INDEX)
        names, shape, parts = (found.get(key) for key in ("class_names", "image_shape", "parts"))
        good = (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and (shape is None or (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)))
            and isinstance(parts, dict)
            and parts
            and all(name in SPLITS and isinstance(part, dict) for name, part in parts.items())
            and all(type(part.get("count")) is int and isinstance(part.get("sha256"), str) for part in parts.values())
        )
        if found.get("format") != FORMAT or not good:
            raise InputError(f"{str(path / INDEX)!r} is not of the format {FORMAT!r}: {_REMEDY}")
        self.class_names = tuple(names)  # type: ignore[arg-type]
        self.image_shape = None if shape is None else (shape[0], shape[1], shape[2])
        self.value_ranges = parse_ranges(found.get("value_ranges"), str(path / INDEX))
        assert isinstance(parts, dict)
        self._parts: dict[str, dict[str, Any]] = {name: parts[name] for name in SPLITS if name in parts}

    def load(self) -> dict[str, Examples]:
        """Maps the columns; no image is read."""
        return {name: self._open_part(self.path / name, about) for name, about in self._parts.items()}

    def _open_part(self, folder: Path, about: dict[str, Any]) -> Examples:
        count = about["count"]
        shards = Shards(folder, count, about["sha256"])
        ids = TextColumn(folder / "ids.bin")
        # Mapped, so that they are no memory of the process.
        labels = torch.from_file(str(folder / "labels.bin"), shared=False, size=count, dtype=torch.long)
        if labels.min() < -1 or labels.max() >= len(self.class_names):
            raise InputError(f"{str(folder / 'labels.bin')!r} has labels beyond the classes: {_REMEDY}")
        groups = TextColumn(folder / "groups.bin") if about.get("groups") else None
        return Examples(ShardImages((shards, range(count)), ids=ids), ids, labels, groups)
