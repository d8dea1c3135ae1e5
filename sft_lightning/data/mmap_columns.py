"""Columns of numbers and texts that stay on disk and are memory-mapped as they are read.

A list of a million names takes 100 MB in each process; the system can drop the pages of a mapped file at any time.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class NumberColumn:
    """Memory-mapped file of numbers of one type, opened on first use in each process."""

    def __init__(self, path: Path, kind: str) -> None:
        """Store the path; nothing is read.

        Args:
            path: Path of a file of raw numbers.
            kind: Type of the numbers as NumPy spells it, such as `<i8` or `V32`.
        """
        self.path, self._kind = path, kind
        self._values: npt.NDArray[Any] | None = None

    @property
    def values(self) -> npt.NDArray[Any]:
        """Numbers, memory-mapped."""
        if self._values is None:
            self._values = np.memmap(self.path, self._kind, "r")
        return self._values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # another process maps the file itself, without a copy


class _LazyTexts(Sequence[str]):
    """Sequence of texts that are created on access."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        return self._get(position)

    @abstractmethod
    def _get(self, position: int) -> str:
        """Return the text at a position in [0, len)."""


class TextColumn(_LazyTexts):
    """File of texts, with a second file of the positions where each ends."""

    def __init__(self, path: Path) -> None:
        """Store the paths; nothing is read.

        Args:
            path: Path of a file that `write_texts` wrote.
        """
        self._ends = NumberColumn(_ends_path(path), "<i8")
        self._bytes = NumberColumn(path, "u1")

    def __len__(self) -> int:
        return len(self._ends.values)

    def _get(self, position: int) -> str:
        first = self._ends.values[position - 1] if position else 0
        return self._bytes.values[first : self._ends.values[position]].tobytes().decode("utf-8", "replace")


class SelectedTexts(_LazyTexts):
    """Concatenation of selected texts of one or more sequences."""

    def __init__(self, *pieces: tuple[Sequence[str], Sequence[int]]) -> None:
        """Join the texts without a copy.

        Args:
            pieces: Pairs of a sequence of texts and the positions to take from it.
        """
        self._pieces = pieces
        self._stops = np.cumsum([len(positions) for _, positions in pieces])

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def _get(self, position: int) -> str:
        k = int(np.searchsorted(self._stops, position, "right"))
        texts, positions = self._pieces[k]
        return texts[int(positions[position - (int(self._stops[k - 1]) if k else 0)])]

    def __iter__(self) -> Iterator[str]:
        return (texts[int(i)] for texts, positions in self._pieces for i in positions)


class PrefixedTexts(_LazyTexts):
    """Texts with a common prefix."""

    def __init__(self, prefix: str, texts: Sequence[str]) -> None:
        """Join prefix and texts without a copy.

        Args:
            prefix: Text to put before each of the others.
            texts: Sequence of texts.
        """
        self._prefix, self._texts = prefix, texts

    def __len__(self) -> int:
        return len(self._texts)

    def _get(self, position: int) -> str:
        return self._prefix + self._texts[position]


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write texts for `TextColumn`.

    Args:
        path: Path of the file; the positions where texts end go into a second file next to it.
        texts: Texts to write.
    """
    end = 0
    with path.open("wb") as file, _ends_path(path).open("wb") as ends:
        for text in texts:
            end += file.write(text.encode("utf-8", "replace"))
            ends.write(np.int64(end).astype("<i8").tobytes())


def _ends_path(path: Path) -> Path:
    return path.with_suffix(".ends.bin")
