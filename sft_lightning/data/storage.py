"""Storage of the examples of a data set of any modality: one tensor, or records that are read one by one."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.transfer import fits_in_memory


class Storage(ABC):
    """Numbered collection of examples of any modality."""

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

    def contents(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of each of some examples and of what is learned of it, for the record of a run.

        By default that of the examples alone, whose labels the record names.

        Args:
            indices: Positions of the examples.
        """
        return self.fingerprints(indices)

    def count_classes(self, indices: Sequence[int]) -> Tensor | None:
        """Count how much of each class some examples hold, int64, (N, C); None where labels say their classes.

        Args:
            indices: Positions of the examples.
        """
        return None

    @classmethod
    @abstractmethod
    def joined(cls, pieces: Sequence[tuple["Storage", Sequence[int]]], ids: Sequence[str]) -> Self:
        """Return some examples of several collections of this kind as one.

        Args:
            pieces: Collections, and the positions to take from each.
            ids: Names of all examples.
        """

    def fit_vectorizer(
        self, pieces: Sequence[tuple["Storage", Sequence[int]]]
    ) -> Callable[["Storage", Sequence[int]], Any] | None:
        """Return a function from examples to a sparse matrix of non-negative numbers, (N, D), for plain classifiers.

        None, the default, where the numbers of the inputs serve them as well.

        Args:
            pieces: Training examples, whose labels are not used: collections, and the positions to take from each.
        """
        return None

    def digest_sizes(self) -> str:
        """Compute the digest that earlier versions used in place of the content digest."""
        return self.digest()

    def count_decoded(self, indices: Sequence[int], settings: Any) -> int:
        """Return the bytes of some examples in a cache of decoded files; 0 for examples that are not files.

        Args:
            indices: Positions of the examples.
            settings: `ReadSettings` of the modality.
        """
        return 0

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
        """Wrap the tensor without a copy.

        Args:
            data: Tensor of shape (N, ...).
        """
        self.data = data
        self._there: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.data)

    def on(self, device: torch.device) -> Tensor:
        """Return the examples on a device, copied there once if they fit, or on their own device otherwise.

        Args:
            device: Device of the network.
        """
        if device not in self._there and fits_in_memory(self.data.nbytes, device):
            self._there[device] = self.data.to(device)  # once, so not by way of pinned memory, which would be kept
        return self._there.get(device, self.data)

    def digest(self) -> str:
        """Compute the SHA-256 of all numbers."""
        return hashlib.sha256(self.data.contiguous().numpy().data).hexdigest()

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> Self:
        """Return some examples of several tensors as one tensor."""
        return cls(torch.cat([one.data[torch.as_tensor(at)] for one, at in pieces if isinstance(one, TensorStorage)]))

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Return the bytes of each example, which are equal."""
        return [self.data[0].numel()] * len(indices)

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of the numbers of each example."""
        numbers = self.data.contiguous().numpy()
        return [hashlib.sha256(numbers[i].data).digest() for i in indices]


class FeatureStorage(TensorStorage):
    """Features that stand in for the examples they were computed from, float32 of shape (N, F)."""


class HasShape(Protocol):
    """Settings by which records become examples of one shape; each modality has its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a modality whose records have one shape by themselves.

    Attributes:
        shape: Shape of one example.
    """

    shape: tuple[int, ...]


class RecordStorage(Storage):
    """Examples that are read one by one, such as files.

    Attributes:
        is_decoded: Whether the records are stored decoded, as in a cache.
        facts: Properties measured on the records, of a type of the modality; None before they are measured.
    """

    is_decoded: bool = False
    facts: Any = None

    @abstractmethod
    def path_of(self, index: int) -> Path:
        """Return where an example is, for messages.

        Args:
            index: Position of the example.
        """

    @abstractmethod
    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Find the records that cannot be read, as far as this can be detected without decoding.

        Args:
            indices: Positions of the examples to check.
            measures: Whether to decode records for further measurements.

        Returns:
            Reason by position.
        """

    @abstractmethod
    def read(self, index: int, settings: Any, seed: int | None) -> Inputs:
        """Read one example, without a dimension for the batch.

        Args:
            index: Position of the example.
            settings: `ReadSettings` of the modality.
            seed: Seed of a random crop or the like; None for none.

        Raises:
            OSError: It cannot be read.
        """

    def read_batch(self, indices: Sequence[int], pinned: bool = False) -> Tensor | None:
        """Read several examples at once, (B, ...), without randomness; return None if reading one by one is as fast.

        Args:
            indices: Positions of the examples.
            pinned: Whether to read into memory from which a GPU copies faster.
        """
        return None


def collate(examples: Sequence[Inputs]) -> Inputs:
    """Stack examples of one form, copied by this thread alone.

    `torch.stack` divides the copy among its threads, which wait for each other when other processes occupy the cores:
    2 seconds for 384 images of 3 x 224 x 224 on two busy cores, instead of 13 milliseconds.

    Args:
        examples: At least one example on the CPU; all have one shape, or the same names and shapes.
    """
    first = examples[0]
    if not isinstance(first, Tensor):
        return {name: _stack([example[name] for example in examples]) for name in first}
    return _stack(examples)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    made = np.empty((len(tensors), *tensors[0].shape), tensors[0].numpy().dtype)
    return torch.from_numpy(np.stack([tensor.numpy() for tensor in tensors], out=made))
