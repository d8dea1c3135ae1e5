"""Fields of the entries of COCO's JSON: a sentence about a wrong one names the entry, the field and the value."""

import json
from collections.abc import Mapping
from typing import Any

_MOST = 60  # characters of a value that a sentence shows


def read_field(entry: Any, field: str, name: str, expected: str) -> Any:
    """Return a field of an entry.

    Args:
        entry: Entry of a JSON.
        field: Name of the field.
        name: Name of the entry, for messages.
        expected: What the field holds, for messages.

    Raises:
        ValueError: The entry is not an object, or lacks the field.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} is {show_value(entry)}: give an object with {field}")
    if field not in entry:
        raise ValueError(f"{name} has no {field}: add {expected}")
    return entry[field]


def read_whole(entry: Any, field: str, name: str) -> int:
    """Return a field that holds a whole number.

    Args:
        entry: Entry of a JSON.
        field: Name of the field.
        name: Name of the entry, for messages.

    Raises:
        ValueError: The field is missing, or holds something else.
    """
    value = read_field(entry, field, name, "a whole number")
    try:
        if int(value) == float(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise refuse_value(field, value, name, "a whole number")


def read_id(entry: Any, field: str, name: str) -> int | str:
    """Return a field that holds the id of an image, a whole number or a text.

    Args:
        entry: Entry of a JSON.
        field: Name of the field.
        name: Name of the entry, for messages.

    Raises:
        ValueError: The field is missing, or holds something else.
    """
    value = read_field(entry, field, name, "the id of an image")
    return value if isinstance(value, str) else read_whole(entry, field, name)


def read_text(entry: Any, field: str, name: str) -> str:
    """Return a field that holds a text or a number, which counts as one.

    Args:
        entry: Entry of a JSON.
        field: Name of the field.
        name: Name of the entry, for messages.

    Raises:
        ValueError: The field is missing, blank, or holds something else.
    """
    value = read_field(entry, field, name, "a text")
    if not isinstance(value, (str, int, float)) or not str(value).strip():
        raise refuse_value(field, value, name, "a text")
    return str(value)


def read_list(content: Any, field: str) -> list[Any]:
    """Return a list of the JSON.

    Args:
        content: Content of the JSON.
        field: Name of the list.

    Raises:
        ValueError: The list is missing, or is something else.
    """
    value = read_field(content, field, "it", "a list")
    if not isinstance(value, list):
        raise refuse_value(field, value, "it", "a list")
    return value


def name_annotation(entry: Any, position: int | None = None) -> str:
    """Return how sentences name an annotation.

    Args:
        entry: Annotation.
        position: Its position in the list, for one without an id.
    """
    known = entry.get("id") if isinstance(entry, Mapping) else None
    if known is None and position is not None:
        return f"entry {position + 1} of annotations"
    return f"annotation {'?' if known is None else known}"


def refuse_value(field: str, value: Any, name: str, expected: str) -> ValueError:
    """Return the error for a field with a wrong value.

    Args:
        field: Name of the field.
        value: Its value.
        name: Name of the entry.
        expected: What to give in its place.
    """
    return ValueError(f"{name} has {field} {show_value(value)}: give {expected}")


def show_value(value: Any) -> str:
    """Return a value as the JSON has it, shortened if it is long.

    Args:
        value: Value of a field.
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST else f"{text[:_MOST]} ..."
