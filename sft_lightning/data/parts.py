"""What every source gives: parts with pictures, names, labels and groups."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.data.broken import text
from sft_lightning.data.images import FileImages, Images, MemoryImages

SPLITS = ("train", "val", "test", "unlabeled")


@dataclass
class Part:
    """The examples that a source itself puts into one split.

    Attributes:
        images: The pictures.
        ids: Name of each, unique within the source and equal on every machine.
        labels: int64 of shape (N,), -1 where there is none.
        groups: Patient, video, ... of each, or None.
    """

    images: Images
    ids: list[str]
    labels: Tensor
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Source(ABC):
    """A set of pictures, some with labels.

    Attributes:
        name: What the user wrote.
        class_names: The classes, in the order of their numbers.
        image_shape: (C, H, W) when all pictures have one shape, else None.
    """

    name: str
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None

    @abstractmethod
    def load(self) -> dict[str, Part]:
        """Reads the parts that exist among `train`, `val`, `test` and `unlabeled`."""


def concatenated(*pieces: tuple[Part, list[int]]) -> Part:
    """Some examples of several parts as one part.

    Args:
        pieces: Part and positions; all in memory or all files.
    """
    ids = [part.ids[i] for part, chosen in pieces for i in chosen]
    labels = torch.cat([part.labels[chosen] for part, chosen in pieces])
    grouped = any(part.groups is not None for part, _ in pieces)  # who has no group is one of its own
    groups = [(part.groups or part.ids)[i] for part, chosen in pieces for i in chosen] if grouped else None
    memory = [(part.images.data, chosen) for part, chosen in pieces if isinstance(part.images, MemoryImages)]
    if len(memory) == len(pieces):
        return Part(MemoryImages(torch.cat([data[chosen] for data, chosen in memory])), ids, labels, groups)
    files = [(part.images.paths, chosen) for part, chosen in pieces if isinstance(part.images, FileImages)]
    return Part(FileImages([paths[i] for paths, chosen in files for i in chosen], ids), ids, labels, groups)


def relative(path: Path, root: Path) -> str:
    """A path as a name that is the same on every machine.

    Args:
        path: To name.
        root: Folder that the name is relative to.
    """
    return text(Path(os.path.relpath(path, root)).as_posix())
