"""What a file of weights says of itself: taken only where it is of the types that this package writes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

_MOST = 65_536  # pixels of a side


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_count(n) and 0 < n <= _MOST for n in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("backbone", "network", "part", "head", "_class_path", "made_by"), (_is_text, "a text")),
    **dict.fromkeys(("num_features", "num_classes", "step"), (_is_count, "a whole number")),
    "tau": (_is_number, "a number"),
    "image_shape": (_is_shape, "channels, height and width"),
    "class_names": (_are_names, "a list of texts"),
    "chain": (lambda value: isinstance(value, list), "a list"),
}


def check_metadata(found: Any, where: str) -> dict[str, Any]:
    """A description whose known fields are of their types; other fields are nobody's and stay as they are.

    Nothing in it names code that is run: a `backbone` is looked up among known networks, a `_class_path` is shown.

    Args:
        found: What was read.
        where: The file, as messages name it.

    Returns:
        A copy.

    Raises:
        ValueError: It is no mapping, or a field is of another type.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} is no mapping")
    for name, (fits, kind) in _FIELDS.items():
        value = found.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"{where} has {name} {value!r:.60}, which is not {kind}")
    return dict(found)
