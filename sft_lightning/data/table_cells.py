"""Cells of tables that are not CSV: JSON lines and Parquet."""

import datetime
import json
from decimal import Decimal
from typing import Any

from sft_lightning.utils.errors import InputError

_KINDS = {"path": (str,), "group": (str, bool, int, float, Decimal, datetime.date)}


def parse_json_row(text: str, where: str) -> dict[str, Any]:
    """Return the object of a line of a table of JSON lines.

    Args:
        text: Line.
        where: Kind and name of the table, and number of the line.

    Raises:
        InputError: It is not an object.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: it is not JSON ({error}): correct it") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: it is not an object in braces: write one per line")
    return row


def convert_cell(value: object, where: str, column: str, name: str) -> str:
    """Return the text of a cell, or an empty string if it is null or NaN.

    Args:
        value: Content of the cell.
        where: Kind and name of the table, and number of the line.
        column: Name of the column, as it is written.
        name: Name of the known column that it is; empty for others, which may hold anything.

    Raises:
        InputError: The cell holds something else than text or a number.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):  # some programs do not mark their text as such
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            if not name:
                return ""
            raise InputError(f"{where}: the column {column!r} holds bytes that are not text: write text") from error
    if isinstance(value, float | Decimal) and float(value).is_integer() and abs(float(value)) < 2**53:
        return str(int(value))  # pandas turns a column of integers with blanks into floats
    kinds: tuple[type, ...] = _KINDS.get(name, (str, bool, int, float, Decimal))
    if name and not isinstance(value, kinds):
        raise InputError(
            f"{where}: the column {column!r} holds a {type(value).__name__} ({str(value)[:40]!r}): write text"
            f"{'' if name == 'path' else ' or numbers'}"
        )
    text = str(value)
    if name and name != "path" and text != replace_halves(text):
        raise InputError(f"{where}: the column {column!r} holds half of a character ({text[:40]!a}): write it whole")
    return text


def replace_halves(text: str) -> str:
    """Return a text with U+FFFD in place of each half of a character, which no file in UTF-8 can hold.

    JSON of programs that cut texts off after a number of UTF-16 units has such halves of emoji.

    Args:
        text: Text.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def find_kinds(schema: Any) -> tuple[list[int], list[int]]:
    """Return the positions of the columns of text, and of those of numbers, of a Parquet file.

    Args:
        schema: Schema of Arrow.
    """
    import pyarrow

    types = [kind.value_type if pyarrow.types.is_dictionary(kind) else kind for kind in schema.types]
    texts = [i for i, kind in enumerate(types) if str(kind) in ("string", "large_string", "string_view")]
    return texts, [i for i, kind in enumerate(types) if pyarrow.types.is_primitive(kind)]
