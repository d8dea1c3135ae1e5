"""Number the classes of a source: by the resumed or evaluated run, if any, or else by the source."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.data.issues import Finding
from sft_lightning.data.source import Examples, Source
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
        self._source, self.name = source, source.name
        self.class_names = tuple(class_names)
        message = f"{source.name} has no example of the class {format_class_names(absent)}, which keeps its number"
        self.messages = [*source.messages, *([Finding("missing_class", message, absent)] if absent else [])]

    @property
    def original(self) -> Source:
        """Underlying source, with its own order of classes."""
        return self._source.original

    def load(self) -> dict[str, Examples]:
        """Load the examples with renumbered labels; -1 (unlabeled) stays -1."""
        numbers = torch.tensor([*match_classes(self._source.class_names, self.class_names), -1])
        return {name: replace(part, labels=numbers[part.labels]) for name, part in self._source.load().items()}
