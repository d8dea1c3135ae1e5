"""Where the examples of a data set lie, whatever they are: in one tensor, or each to be read by itself."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.utils.transfer import fits_in_memory


class Storage(ABC):
    """A numbered collection of examples, whatever they are."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def digest(self) -> str:
        """Compute the SHA-256 of the content of all examples; of files, also of their names."""

    @abstractmethod
    def sizes(self, indices: Sequence[int]) -> Sequence[int] | npt.NDArray[np.int64]:
        """Return the bytes of each example: equal content implies equal size, so only equal sizes are compared."""

    @abstractmethod
    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of the content of each of some examples."""

    def digest_sizes(self) -> str:
        """Compute the digest that earlier versions took for that of the content."""
        return self.digest()

    def pass_order(self, indices: Sequence[int], window: int) -> Callable[[int], Any] | None:
        """Return how passes over some examples are ordered; None where any order reads equally fast.

        Args:
            indices: Positions of the examples.
            window: Number of files whose examples are shuffled among each other.
        """
        return None


class TensorStorage(Storage):
    """Examples as one tensor of shape (N, ...), such as uint8 (N, C, H, W) of images; a batch is an index into it."""

    def __init__(self, data: Tensor) -> None:
        """Wraps the tensor without a copy.

        Args:
            data: Tensor of shape (N, ...).
        """
        self.data = data
        self._there: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.data)

    def on(self, device: torch.device) -> Tensor:
        """Return the examples on a device, copied there once where they fit; else where they are.

        Args:
            device: Device of the network.
        """
        if device not in self._there and fits_in_memory(self.data.nbytes, device):
            self._there[device] = self.data.to(device)  # once, so not by way of pinned memory, which would be kept
        return self._there.get(device, self.data)

    def digest(self) -> str:
        """Compute the SHA-256 of all numbers."""
        return hashlib.sha256(self.data.contiguous().numpy().data).hexdigest()

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Return the bytes of each example, which are equal."""
        return [self.data[0].numel()] * len(indices)

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of the numbers of each example."""
        pixels = self.data.contiguous().numpy()
        return [hashlib.sha256(pixels[i].data).digest() for i in indices]


class FeatureStorage(TensorStorage):
    """Features in place of the examples that they were computed of, float32 (N, F)."""


class ReadSettings(Protocol):
    """How records become examples of one shape; the modality of a storage defines what else stands there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""


class RecordStorage(Storage):
    """Examples that are read one by one, such as files.

    Attributes:
        decoded: Whether reading takes no decoding, as from a cache.
        facts: What looking at the records has shown, of a type of the modality; None before.
    """

    decoded: bool = False
    facts: Any = None

    @abstractmethod
    def place(self, index: int) -> Path:
        """Return where an example is, for messages.

        Args:
            index: Position of the example.
        """

    @abstractmethod
    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Find records that cannot be read, as far as that shows without decoding.

        Args:
            indices: Positions of the examples to look at.
            measures: Whether to measure what takes decoding, too.

        Returns:
            Reason by position.
        """

    @classmethod
    @abstractmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> Self:
        """Return some examples of several collections of this kind as one.

        Args:
            pieces: Collections, and the positions to take of each.
            ids: Names of all examples.
        """

    @abstractmethod
    def read(self, index: int, geometry: Any, seed: int | None) -> Tensor:
        """Read one example.

        Args:
            index: Position of the example.
            geometry: `ReadSettings` of the modality.
            seed: Seed of a random crop or the like; None for none.

        Raises:
            OSError: It cannot be read.
        """

    def several(self, indices: Sequence[int], pinned: bool = False) -> Tensor | None:
        """Read several examples at once, (B, ...), without randomness; None where that is no faster than one by one.

        Args:
            indices: Positions of the examples.
            pinned: Whether to read into memory from which a GPU copies faster.
        """
        return None


def collate(pictures: Sequence[Tensor]) -> Tensor:
    """Stack examples of one shape, copied by this thread alone.

    `torch.stack` divides each among its threads; where others want the cores, too, they wait for each other: 2 seconds
    for 384 pictures of 3 x 224 x 224 on two busy cores, instead of 13 milliseconds.

    Args:
        pictures: Tensors on the CPU; at least one.
    """
    made = np.empty((len(pictures), *pictures[0].shape), pictures[0].numpy().dtype)
    return torch.from_numpy(np.stack([picture.numpy() for picture in pictures], out=made))
