"""Cells of CSV files for people: what a spreadsheet would run as a formula is kept from it, and read back as it was."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

# What spreadsheets take for the beginning of a formula or of another cell, also as full-width characters.
_RUN = re.compile("'*(?:\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20].|[\t\r\n])", re.DOTALL)  # a lone dash is text
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)")


def protect_cell(value: object) -> object:
    """Return a cell with an apostrophe before what a spreadsheet would run; numbers stay numbers.

    Args:
        value: Content of the cell.
    """
    if isinstance(value, str) and _RUN.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def restore_cell(text: str) -> str:
    """Return what a cell was before `protect_cell`.

    Args:
        text: Content of the cell.
    """
    return text[1:] if text.startswith("'") and _RUN.match(text) else text


def protect_row(row: Iterable[object]) -> list[object]:
    """Return the cells of a row, each as `protect_cell` has it.

    Args:
        row: Contents of the cells.
    """
    return [protect_cell(value) for value in row]


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as the text of a CSV file that a spreadsheet can open without running a cell.

    Args:
        rows: Contents of the cells, the header first.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(protect_row(row) for row in rows)
    return text.getvalue()
