"""Which number each class of a source has: that of the run that goes on, where there is one, whatever the source's."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.sources import open_source, open_unlabeled
from sft_lightning.data.vision.file_checks import BadImages
from sft_lightning.utils.errors import InputError, did_you_mean


class RenumberedSource(Source):
    """A source whose labels are numbered as a run, or the setting `class_names`, has the classes."""

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        """Matches the classes by name.

        Args:
            source: Source with classes of its own, in any order.
            class_names: Classes in the order of their new numbers.

        Raises:
            InputError: The source has a class that is not among them, or one stands there twice.
        """
        counts = Counter(unicodedata.normalize("NFC", name) for name in class_names)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise InputError(f"class_names has {format_class_names(twice)} twice: name each class once")
        unknown = find_missing_classes(source.class_names, class_names)
        absent = find_missing_classes(class_names, source.class_names)
        if unknown:
            lacks = f" and lacks {format_class_names(absent)}" if absent else ""
            hint = did_you_mean(unknown[0], absent)
            raise InputError(
                f"source {source.name!r} has the class {format_class_names(unknown)}{hint}, which the run or "
                f"class_names does not know{lacks}: rename it, leave it out, or train a new run on this source"
            )
        self._source, self.name, self.image_shape = source, source.name, source.image_shape
        self.value_ranges = source.value_ranges
        self.class_names = tuple(class_names)
        said = f"{source.name} has no example of the class {format_class_names(absent)}, which keeps its number"
        self.messages = [*source.messages, *([said] if absent else [])]

    def load(self) -> dict[str, Examples]:
        """Reads the parts; -1 stays -1."""
        numbers = torch.tensor([*match_classes(self._source.class_names, self.class_names), -1])
        return {name: replace(part, labels=numbers[part.labels]) for name, part in self._source.load().items()}


class ClassOrder:
    """The source of an `ImageDataModule`, whose attributes these are, and the order of its classes."""

    _named: str
    _class_names: list[str] | None
    root: str
    download: bool
    bad: BadImages
    unlabeled_source: str | None
    followed_run: Path | None

    @cached_property
    def opened_source(self) -> Source:
        """Where the examples come from, with classes in an order of its own; opened when it is first needed."""
        skip, listed = self.bad.policy == "skip", self._class_names or ()
        return open_source(self._named, self.root, self.download, skip=skip, listed_classes=listed)

    @property
    def source(self) -> Source:
        """Where the examples come from, with labels in the order of `class_names`.

        Raises:
            InputError: It is not there, or has a class that is not among them.
        """
        if self._class_names is None or self._class_names == list(self.opened_source.class_names):
            return self.opened_source
        return RenumberedSource(self.opened_source, self._class_names)

    def source_for(self, stage: str) -> Source:
        """Return the source for a stage of the Trainer.

        Args:
            stage: `fit`, `validate`, `test` or `predict`, which needs no labels and takes a source of other classes.
        """
        strange = stage == "predict" and find_missing_classes(self.opened_source.class_names, self.class_names)
        return self.opened_source if strange else self.source

    def unlabeled_for(self, stage: str) -> tuple[str, Examples] | None:
        """Return name and images of the other source of unlabeled images, where there is one, for a stage.

        Args:
            stage: As for `source_for`; a run that is measured again does without what is no longer there.

        Raises:
            InputError: It is not there, but needed.
        """
        name = self.unlabeled_source
        if name is None:
            return None
        try:
            return name, open_unlabeled(name, self.root, self.download, self.bad.policy == "skip")
        except InputError:
            if stage == "fit" or self.followed_run is None:
                raise
            return None

    @property
    def num_classes(self) -> int:
        """Number of classes, known before any image is read."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.opened_source.class_names if self._class_names is None else self._class_names)
