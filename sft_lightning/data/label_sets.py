"""Labels that are sets of classes, `dog;outdoors`: their names, their rows of 0 and 1, and a source that has them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sft_lightning.data.class_names import (
    find_missing_classes,
    format_class_names,
    list_classes,
    match_classes,
    sort_classes,
)
from sft_lightning.data.issues import Finding
from sft_lightning.data.source import Examples, Source
from sft_lightning.utils.errors import InputError, did_you_mean


class LabelSets:
    """The different labels of a source, each a set of classes. A label is the number of its set.

    So splits, copies and tables of labels treat sets as they treat classes; only where a network learns or is judged do
    they become rows of 0 and 1.

    Attributes:
        class_names: Names of the classes, in the order of the columns.
        names: Name of each set: its classes in their order, joined by the separator; the separator alone for none.
        rows: 1 where a set has the class, int64, (S + 1, C); the last row, which label -1 means, is -1.
    """

    def __init__(self, labels: Iterable[str], separator: str, class_names: Sequence[str] | None = None) -> None:
        """Number the sets.

        Args:
            labels: Labels of a source.
            separator: Separator of the classes.
            class_names: Classes in the order of the columns; None for those of the labels.

        Raises:
            InputError: A label names a class that `class_names` lacks.
        """
        listed = [list_classes(label, separator) for label in labels]
        found = sort_classes(dict.fromkeys(name for names in listed for name in names))
        self.separator = separator
        self.class_names = found if class_names is None else tuple(class_names)
        if unknown := find_missing_classes(found, self.class_names):
            raise InputError(
                f"a label names the class {unknown[0]!r}, which the run or class_names does not know"
                f"{did_you_mean(unknown[0], self.class_names)}; known are {format_class_names(self.class_names)}: "
                "correct it, or train a new run on this source"
            )
        sets = {frozenset(match_classes(names, self.class_names)) for names in listed}
        ordered = sorted(sets, key=lambda one: (len(one), sorted(one)))
        self._numbers = {one: k for k, one in enumerate(ordered)}
        self.names = tuple(self.format([self.class_names[k] for k in sorted(one)]) for one in ordered)
        self.rows = torch.full((len(ordered) + 1, len(self.class_names)), -1)
        self.rows[:-1] = 0
        for k, one in enumerate(ordered):
            self.rows[k, sorted(one)] = 1

    def format(self, names: Sequence[str]) -> str:
        """Return the label of some classes.

        Args:
            names: Names of the classes, in their order.
        """
        return self.separator.join(names) or self.separator

    def find(self, label: str) -> int:
        """Return the number of a label that the sets were made from, in any order and spacing of its classes.

        Args:
            label: Label.
        """
        return self._numbers[frozenset(match_classes(list_classes(label, self.separator), self.class_names))]

    def count(self, labels: Tensor) -> Tensor:
        """Return how many labels have each class, int64, (C,).

        Args:
            labels: Labels, int64, (N,); -1 where unknown.
        """
        return self.rows[labels[labels >= 0]].sum(0)


def show_label(label: str, sets: LabelSets | None) -> str:
    """Return a label as people read it: `dog + outdoors`, and `no class` where it names none.

    Args:
        label: Label as tables have it; empty where it is unknown.
        sets: Sets of classes that the labels are; None where each is one class.
    """
    if sets is None or not label:
        return label
    return " + ".join(list_classes(label, sets.separator)) or "no class"


class LabelSetSource(Source):
    """Source whose labels are sets of classes, of a source that reads each label as one class.

    Attributes:
        label_sets: Sets of classes, whose numbers are the labels.
    """

    def __init__(
        self,
        source: Source,
        separator: str,
        class_names: Sequence[str] | None = None,
        column_classes: Sequence[str] = (),
    ) -> None:
        """Split the labels at the separator.

        Args:
            source: Source whose class names are labels such as `dog;outdoors`.
            separator: Separator of the classes.
            class_names: Classes in the order of their numbers; None for natural order.
            column_classes: Classes of columns of 0 and 1 that the labels were made from, in their order; empty where
                the labels were written with the separator.

        Raises:
            InputError: No label has the separator, or one names a class that `class_names` lacks.
        """
        labels = source.class_names
        if labels and not column_classes and not any(separator in label for label in labels):
            raise InputError(
                f"label_separator is {separator!r}, which is in no label of {source.name!r} (such as {labels[0]!r}): "
                "correct it, or leave it out if each example has one class"
            )
        self._source, self.name = source, source.name
        self.label_sets = LabelSets(labels, separator, class_names or column_classes or None)
        self.class_names = self.label_sets.class_names
        self.messages = list(source.messages)
        used = [name for label in labels for name in list_classes(label, separator)]
        if absent := find_missing_classes(self.class_names, used):
            message = f"{source.name} has no example of the class {format_class_names(absent)}, which keeps its number"
            self.messages.append(Finding("missing_class", message, absent))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the sets, in the order of their numbers."""
        return self.label_sets.names

    @property
    def original(self) -> Source:
        """Underlying source, whose classes are the labels as they were written."""
        return self._source.original

    def load(self) -> dict[str, Examples]:
        """Load the examples with the numbers of their sets; -1 (unlabeled) stays -1."""
        numbers = torch.tensor([*map(self.label_sets.find, self._source.class_names), -1])
        return {name: replace(part, labels=numbers[part.labels]) for name, part in self._source.load().items()}
