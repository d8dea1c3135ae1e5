"""Names of classes: their order, and how those of a data set, a run and a file of weights are matched."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 5  # names in a sentence


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in natural order, which is the same for folders, tables and shards.

    Numbers come first, by value, then words: without regard to case, and with the numbers inside them by value, so
    that `class 2` comes before `class 10`. The spelling decides between names that are otherwise equal.

    Args:
        names: Names of the classes, each once.
    """
    return tuple(sorted(names, key=_natural_key))


def list_classes(label: str, separator: str | None) -> list[str]:
    """Return the classes that a label names, each once, without blanks around them; none of a blank label.

    Args:
        label: Label, such as `dog; outdoors`; a separator alone is the label of an example of no class.
        separator: Separator of the classes; None where a label is one class.
    """
    if separator is None:
        return [label] if label else []
    return [*dict.fromkeys(name for part in label.split(separator) if (name := part.strip()))]


def _natural_key(name: str) -> Any:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return 0, value, (), name
    pieces = re.split("([0-9]+)", unicodedata.normalize("NFC", name).casefold())
    pieces[1::2] = [digits.lstrip("0") for digits in pieces[1::2]]
    # Length before digits compares numbers of any size; `int` refuses more than 4,300 digits.
    return 1, 0.0, tuple((len(piece), piece) if i % 2 else piece for i, piece in enumerate(pieces)), name


def match_classes(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Return the position of each name among others, or -1 if it is missing.

    A letter with an accent may be composed in one place and decomposed in the other, as file systems differ in it.

    Args:
        names: Names to look up.
        among: Names to look among.
    """
    if list(names) == list(among):
        return list(range(len(names)))
    exact = {name: k for k, name in reversed([*enumerate(among)])}
    composed = {unicodedata.normalize("NFC", name): k for name, k in exact.items()}
    return [exact.get(name, composed.get(unicodedata.normalize("NFC", name), -1)) for name in names]


def find_missing_classes(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """Return the names that are not among others.

    Args:
        names: Names to look up.
        among: Names to look among.
    """
    return [name for name, position in zip(names, match_classes(names, among), strict=True) if position < 0]


def format_class_names(names: Sequence[str]) -> str:
    """Format class names for a sentence, shortened if there are many.

    Args:
        names: Names of classes.
    """
    shown = ", ".join(map(repr, names[:_SHOWN])) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def describe_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """Describe how two lists of classes differ: by their names, or else by their order.

    Args:
        names: Classes of a model.
        others: Classes of the data.
    """
    only_model, only_data = find_missing_classes(names, others), find_missing_classes(others, names)
    if only_model or only_data:
        return f"only the model has {format_class_names(only_model)}, only the data has {format_class_names(only_data)}"
    first = next(i for i, (a, b) in enumerate(zip(names, others, strict=False)) if a != b)
    return f"class {first} is {names[first]!r} in the model and {others[first]!r} in the data"


def parse_class_names(value: Any) -> list[str] | None:
    """Return class names read from a file, or None if they are empty or not a list of strings.

    Args:
        value: Value in the file that should hold the names.
    """
    is_list = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return list(value) if is_list and value else None
