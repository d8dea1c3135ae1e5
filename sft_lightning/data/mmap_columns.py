"""Columns of many examples that stay on the disk: numbers and texts, mapped into memory page by page as they are read.

A list of a million names takes a hundred megabytes of each process; these take none that the system cannot drop.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class NumberColumn:
    """A file of numbers of one kind, opened when it is first needed, in each process anew."""

    def __init__(self, path: Path, kind: str) -> None:
        """Names the file; nothing is read.

        Args:
            path: Of raw numbers, one after the other.
            kind: Of each, as numpy has it: `<i8`, `V32`.
        """
        self.path, self._kind = path, kind
        self._values: npt.NDArray[Any] | None = None

    @property
    def values(self) -> npt.NDArray[Any]:
        """The numbers."""
        if self._values is None:
            self._values = np.memmap(self.path, self._kind, "r")
        return self._values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # another process maps the file, and gets no copy of it


class _LazyTexts(Sequence[str]):
    """Texts that are made when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._get(place)

    @abstractmethod
    def _get(self, place: int) -> str:
        """The text at a place from 0 on."""


class TextColumn(_LazyTexts):
    """A file of texts, and one of the places where each ends."""

    def __init__(self, path: Path) -> None:
        """Names the files; nothing is read.

        Args:
            path: Written by `write_texts`.
        """
        self._ends = NumberColumn(_ends_path(path), "<i8")
        self._bytes = NumberColumn(path, "u1")

    def __len__(self) -> int:
        return len(self._ends.values)

    def _get(self, place: int) -> str:
        first = self._ends.values[place - 1] if place else 0
        return self._bytes.values[first : self._ends.values[place]].tobytes().decode("utf-8", "replace")


class SelectedTexts(_LazyTexts):
    """Some of each of several sequences of texts, one after the other."""

    def __init__(self, *pieces: tuple[Sequence[str], Sequence[int]]) -> None:
        """Joins them without a copy.

        Args:
            pieces: Texts, and which of them.
        """
        self._pieces = pieces
        self._stops = np.cumsum([len(places) for _, places in pieces])

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def _get(self, place: int) -> str:
        k = int(np.searchsorted(self._stops, place, "right"))
        texts, places = self._pieces[k]
        return texts[int(places[place - (int(self._stops[k - 1]) if k else 0)])]

    def __iter__(self) -> Iterator[str]:
        return (texts[int(i)] for texts, places in self._pieces for i in places)


class PrefixedTexts(_LazyTexts):
    """Texts behind a word."""

    def __init__(self, word: str, texts: Sequence[str]) -> None:
        """Joins both without a copy.

        Args:
            word: Goes before each.
            texts: Of any kind.
        """
        self._word, self._texts = word, texts

    def __len__(self) -> int:
        return len(self._texts)

    def _get(self, place: int) -> str:
        return self._word + self._texts[place]


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Writes texts for `TextColumn`.

    Args:
        path: The file; where each ends is written beside it.
        texts: Of any length.
    """
    end = 0
    with path.open("wb") as file, _ends_path(path).open("wb") as ends:
        for text in texts:
            end += file.write(text.encode("utf-8", "replace"))
            ends.write(np.int64(end).astype("<i8").tobytes())


def _ends_path(path: Path) -> Path:
    return path.with_suffix(".ends.bin")
