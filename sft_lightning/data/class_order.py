"""Number the classes of a source: by the resumed or evaluated run where there is one, else by the source."""

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
    """Source whose labels are renumbered to the class order of a run or of the setting `class_names`."""

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        """Match the classes by name.

        Args:
            source: Source with its classes in any order.
            class_names: Classes in the order of their new numbers.

        Raises:
            InputError: `class_names` lacks a class of the source, or lists one twice.
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
        message = f"{source.name} has no example of the class {format_class_names(absent)}, which keeps its number"
        self.messages = [*source.messages, *([message] if absent else [])]

    def load(self) -> dict[str, Examples]:
        """Load the examples with renumbered labels; -1 (unlabeled) stays -1."""
        numbers = torch.tensor([*match_classes(self._source.class_names, self.class_names), -1])
        return {name: replace(part, labels=numbers[part.labels]) for name, part in self._source.load().items()}


class ClassOrder:
    """Mixin of `ImageDataModule`: the source, opened on first use, and the order of its classes."""

    _named: str
    _class_names: list[str] | None
    root: str
    download: bool
    bad: BadImages
    unlabeled_source: str | None
    followed_run: Path | None

    @cached_property
    def opened_source(self) -> Source:
        """Source of the examples, with its own order of classes; opened on first use."""
        skip, listed = self.bad.policy == "skip", self._class_names or ()
        return open_source(self._named, self.root, self.download, skip=skip, listed_classes=listed)

    @property
    def source(self) -> Source:
        """Source of the examples, with labels in the order of `class_names`.

        Raises:
            InputError: The source does not exist, or has a class that `class_names` lacks.
        """
        if self._class_names is None or self._class_names == list(self.opened_source.class_names):
            return self.opened_source
        return RenumberedSource(self.opened_source, self._class_names)

    def source_for(self, stage: str) -> Source:
        """Return the source for a stage of the Trainer.

        Args:
            stage: `fit`, `validate`, `test` or `predict`. `predict` needs no labels, so its source may have other
                classes.
        """
        has_other_classes = find_missing_classes(self.opened_source.class_names, self.class_names)
        return self.opened_source if stage == "predict" and has_other_classes else self.source

    def unlabeled_for(self, stage: str) -> tuple[str, Examples] | None:
        """Return the name and images of the second source of unlabeled images, or None without one.

        Args:
            stage: `fit`, `validate`, `test` or `predict`. Only `fit` needs the images; evaluating an earlier run works
                without them.

        Raises:
            InputError: The second source is needed and does not exist.
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
