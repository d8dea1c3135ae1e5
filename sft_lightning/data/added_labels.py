"""Labels beside a source: the setting `labels` names a CSV that labels more examples, or replaces labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePath

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes, sort_classes
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_checks import check_class_names, check_missing_labels
from sft_lightning.data.label_files import LabelRow, read_label_rows
from sft_lightning.data.source import SPLITS, Examples, Source, concatenated
from sft_lightning.data.split_changes import format_examples
from sft_lightning.utils.errors import InputError, did_you_mean

_SEARCHED = 10_000  # names of the source that a misspelled one is compared with


class LabeledSource(Source):
    """Source with the labels of a CSV, which replace its own.

    Unlabeled examples that get a label become training examples. Validation and test examples keep their split.
    """

    def __init__(self, source: Source, path: Path, listed_classes: Sequence[str] | None = None) -> None:
        """Read the CSV and the source, and label its examples.

        Args:
            source: Source with its own labels, or none.
            path: CSV with the columns `id,label[,status]`; rows with a status or without a label are ignored.
            listed_classes: Class names that the user listed, or None. A source without classes takes those of the CSV.

        Raises:
            InputError: The CSV cannot be read, or names an example or a class that the source does not have.
        """
        self._source, self.name, self._where = source, source.name, f"labels {str(path)!r}"
        rows = [row for row in read_label_rows(path) if row.label and not row.status]
        findings: list[Finding] = []
        self.class_names = self._list_classes(rows, listed_classes, findings)
        numbers = match_classes([row.label for row in rows], self.class_names)
        self._parts = self._add(dict(zip([row.id for row in rows], numbers, strict=True)), rows, findings)
        self.messages = [*source.messages, *findings]

    @property
    def original(self) -> Source:
        """Underlying source, with its own labels."""
        return self._source.original

    def load(self) -> dict[str, Examples]:
        """Return the examples with their labels."""
        return dict(self._parts)

    def _list_classes(
        self, rows: Sequence[LabelRow], listed_classes: Sequence[str] | None, findings: list[Finding]
    ) -> tuple[str, ...]:
        """Return the classes of the source and those of the CSV, which the source or the user must name."""
        own = self._source.class_names
        lines: dict[str, str] = {}
        for row in rows:
            lines.setdefault(row.label, f"line {row.line}")
        if not own and listed_classes is None:
            counts = Counter(row.label for row in rows)
            findings += check_missing_labels(self._where, counts, places=lines)
            findings += check_class_names(self._where, counts, places=lines)
            return sort_classes(counts)
        known = [*own, *find_missing_classes(listed_classes or (), own)]
        if unknown := find_missing_classes([*lines], known):
            raise InputError(
                f"{self._where}, {lines[unknown[0]]}: source {self.name!r} does not have the class {unknown[0]!r}"
                f"{did_you_mean(unknown[0], known)}; known are {format_class_names(known)}: correct it, or list all "
                "classes in class_names"
            )
        used = {*match_classes([*lines], known)}
        return tuple(name for k, name in enumerate(known) if k < len(own) or k in used)

    def _add(
        self, numbers: Mapping[str, int], rows: Sequence[LabelRow], findings: list[Finding]
    ) -> dict[str, Examples]:
        """Return the splits of the source with the labels, and report which labels they replace."""
        parts, unknown = self._source.load(), set(numbers)
        replaced, measured = list[str](), list[str]()
        for split, part in list(parts.items()):
            given = [i for i, name in enumerate(part.ids) if name in numbers]
            labels = part.labels.clone()
            for i in given:
                name, old = part.ids[i], int(labels[i])
                labels[i] = numbers[name]
                unknown.discard(name)
                if old != numbers[name]:
                    replaced += [name] if old >= 0 else []
                    measured += [name] if split in ("val", "test") else []
            parts[split] = replace(part, labels=labels)
            if split == "unlabeled" and given:
                _move_to_training(parts, given)
        if unknown:
            raise self._explain_unknown(next(row for row in rows if row.id in unknown), len(unknown))
        if replaced:
            count = "1 label" if len(replaced) == 1 else f"{len(replaced):,} labels"
            message = f"{self._where} replaces {count} of {self.name}: {format_examples(replaced)}"
            findings.append(Finding("replaced_label", message, replaced))
        if measured:
            count = "1 example" if len(measured) == 1 else f"{len(measured):,} examples"
            message = f"{self._where} changes what is measured, by the labels of {count} in validation or test: "
            message += format_examples(measured)
            findings.append(Finding("replaced_label", message, measured))
        return {split: parts[split] for split in SPLITS if split in parts}

    def _explain_unknown(self, row: LabelRow, count: int) -> InputError:
        """Return the error for a name that the source does not have, with the names that are most like it."""
        last = PurePath(row.id).name
        names = [name for part in self._source.load().values() for name in part.ids if PurePath(name).name == last]
        names = names or [*islice((name for part in self._source.load().values() for name in part.ids), _SEARCHED)]
        more = f" (and of {count - 1:,} more)" if count > 1 else ""
        return InputError(
            f"{self._where}, line {row.line}: source {self.name!r} does not have the example {row.id!r}{more}"
            f"{did_you_mean(row.id, names)}: give names as in split.csv, or set labels to null for other data"
        )


def _move_to_training(parts: dict[str, Examples], positions: Sequence[int]) -> None:
    """Move examples from the split `unlabeled` to `train`."""
    unlabeled, moved = parts.pop("unlabeled"), {*positions}
    kept = [(parts["train"], range(len(parts["train"])))] if "train" in parts else []
    parts["train"] = concatenated(*kept, (unlabeled, positions))
    if rest := [i for i in range(len(unlabeled)) if i not in moved]:
        parts["unlabeled"] = concatenated((unlabeled, rest))
