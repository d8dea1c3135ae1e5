"""Interface of sources: splits of examples with names, labels and groups."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sft_lightning.data.bad_examples import format_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.mmap_columns import PrefixedTexts, SelectedTexts
from sft_lightning.data.split_names import UNCLEAR, find_split
from sft_lightning.data.storage import Storage
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.renamed import warn_renamed

SPLITS = ("train", "val", "test", "unlabeled")


def split_of_name(name: str) -> str | None:
    """Return the split that a word means, such as `val` for "Validation Set", or None.

    Args:
        name: Name of a folder, or value of the column `split`.
    """
    split = find_split(name)
    return None if split == UNCLEAR else split


@dataclass
class Examples:
    """Examples that a source itself puts into one split.

    Attributes:
        storage: Storage of the examples.
        ids: Name of each example, unique within the source and equal on every machine.
        labels: Labels, int64 of shape (N,); -1 for an unlabeled example.
        groups: Group of each example, such as a patient or video, or None.
    """

    storage: Storage
    ids: Sequence[str]
    labels: Tensor
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def groups_of(self, indices: Sequence[int]) -> list[str] | None:
        """Return the groups of some examples, or None where examples have none.

        Args:
            indices: Positions of the examples.
        """
        return None if self.groups is None else [self.groups[i] for i in indices]

    @property
    def images(self) -> Storage:
        """Former name of `storage`."""
        warn_renamed("Examples.images", "storage")
        return self.storage


class Source(ABC):
    """Set of examples, some of them with labels.

    Attributes:
        name: Name as the user wrote it.
        class_names: Names of the classes, in the order of their numbers.
        column_classes: Classes that have a column of 0 and 1 in a table; empty where labels are one column.
        messages: Findings about the data, which a run logs; a plain sentence becomes a finding of kind `note`.
    """

    name: str
    class_names: tuple[str, ...] = ()
    column_classes: tuple[str, ...] = ()
    messages: Sequence[str | Finding] = ()

    @property
    def label_names(self) -> Sequence[str]:
        """Name of each label, in the order of their numbers: the classes, unless a label is a set of them."""
        return self.class_names

    @property
    def original(self) -> "Source":
        """Underlying source if this one only changes labels or their numbers, and otherwise this source."""
        return self

    def find_groups(self, paths: Sequence[Path]) -> list[str] | None:
        """Return the group of each file that says what it belongs to, such as a patient, and an empty text for others.

        Args:
            paths: Paths of the files.

        Returns:
            Groups, or None where no file says so.
        """
        return None

    def count_frames(self, paths: Sequence[Path]) -> list[int]:
        """Return how many examples each file holds as frames, such as the slices of a volume.

        Args:
            paths: Paths of the files, or of frames, which hold one.
        """
        return [1] * len(paths)

    @abstractmethod
    def load(self) -> dict[str, Examples]:
        """Read the splits that exist among `train`, `val`, `test` and `unlabeled`."""


def concatenated(*pieces: tuple[Examples, Sequence[int]]) -> Examples:
    """Join some examples of several collections into one.

    Args:
        pieces: Collections with one kind of storage, and the positions to take from each.
    """
    ids = _some([(part.ids, chosen) for part, chosen in pieces])
    labels = torch.cat([part.labels[torch.as_tensor(chosen, dtype=torch.long)] for part, chosen in pieces])
    grouped = any(part.groups is not None for part, _ in pieces)  # an example without a group forms its own
    groups = _some([(part.groups or part.ids, chosen) for part, chosen in pieces]) if grouped else None
    stored = [(part.storage, chosen) for part, chosen in pieces]
    return Examples(stored[0][0].joined(stored, ids), ids, labels, groups)


def take_unlabeled(source: Source) -> Examples:
    """Return all training and unlabeled examples of a source, without their labels.

    Args:
        source: Source that a setting `unlabeled_source` names, by its `name`.

    Raises:
        InputError: The source has no training or unlabeled examples.
    """
    parts = source.load()
    chosen = [parts[split] for split in ("train", "unlabeled") if split in parts]
    if not chosen:
        raise InputError(
            f"unlabeled_source {source.name!r} has no training or unlabeled example: give a source with some"
        )
    part = chosen[0] if len(chosen) == 1 else concatenated(*[(p, list(range(len(p)))) for p in chosen])
    ids: Sequence[str] = PrefixedTexts(f"{source.name}:", part.ids)
    ids = list(ids) if isinstance(part.ids, list) else ids
    # A group is the same wherever it is; an example that has none is only named like its own.
    known = zip(ids, part.ids, part.groups or (), strict=False)
    groups = None if part.groups is None else [new if group == old else group for new, old, group in known]
    return Examples(part.storage, ids, torch.full((len(part),), -1), groups)


def _some(pieces: list[tuple[Sequence[str], Sequence[int]]]) -> Sequence[str]:
    """Select some of several texts: a list if all are lists, and otherwise a view that leaves them on disk."""
    if all(isinstance(texts, list) for texts, _ in pieces):
        return [texts[i] for texts, chosen in pieces for i in chosen]
    return SelectedTexts(*pieces)


def is_whole(indices: Sequence[int], count: int) -> bool:
    """Return whether positions are all of a collection in its own order.

    Args:
        indices: Positions.
        count: Number of examples of the collection.
    """
    if len(indices) != count or isinstance(indices, range):
        return indices == range(count)
    return bool((np.asarray(indices) == np.arange(count)).all())


def relative(path: Path, root: Path) -> str:
    """Return a path as a name that is the same on every machine.

    Args:
        path: Path to name.
        root: Folder that the name is relative to.
    """
    text, inside = str(path), f"{root}{os.sep}"
    if text.startswith(inside) and "/../" not in text and os.sep == "/":  # five times as fast, where files are many
        return format_path(text[len(inside) :])
    return format_path(Path(os.path.relpath(path, root)).as_posix())
