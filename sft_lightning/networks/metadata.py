"""Metadata of weights files, accepted only if its fields have the types that this package writes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

_MAX_SIDE = 65_536  # pixels
_MAX_LENGTH = 2**26  # numbers, tokens or samples
_SPEC_FIELDS = {"modality", "shape", "dtype", "encoding"}
_DTYPES = ("float32", "int64", "uint8")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 3 and all(_is_count(n) and 0 < n <= _MAX_SIDE for n in value)
    )


def _is_spec(value: Any) -> bool:
    """Return whether a value is a modality with a shape; of texts the shape is (length,), for example."""
    if not isinstance(value, Mapping) or not {"modality", "shape"} <= value.keys() <= _SPEC_FIELDS:
        return False
    shape = value["shape"]
    sides = isinstance(shape, list | tuple) and 0 < len(shape) <= 4 and all(_is_count(n) and n > 0 for n in shape)
    fits = sides and (value["modality"] != "image" or _is_shape(shape)) and max(shape) <= _MAX_LENGTH
    texts = _is_text(value["modality"]) and _is_text(value.get("encoding", ""))
    return fits and value.get("dtype", "float32") in _DTYPES and texts


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("backbone", "network", "part", "head", "_class_path", "made_by"), (_is_text, "a text")),
    **dict.fromkeys(("num_features", "num_classes", "step"), (_is_count, "a whole number")),
    "tau": (_is_number, "a number"),
    "image_shape": (_is_shape, "channels, height and width"),
    "input_spec": (_is_spec, "a modality and a shape"),
    "class_names": (_are_names, "a list of texts"),
    "chain": (lambda value: isinstance(value, list), "a list"),
}


def check_metadata(metadata: Any, where: str) -> dict[str, Any]:
    """Check the types of known fields; unknown fields are kept.

    No field names code that is run: a `backbone` is looked up among known networks, a `_class_path` is only shown.

    Args:
        metadata: Metadata of a file.
        where: Name of the metadata for messages.

    Returns:
        A copy of the metadata.

    Raises:
        ValueError: The metadata is not a mapping, or a field has another type.
    """
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{where} is not a mapping")
    for name, (fits, kind) in _FIELDS.items():
        value = metadata.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"{where} has {name} {value!r:.60}, which is not {kind}")
    return dict(metadata)
