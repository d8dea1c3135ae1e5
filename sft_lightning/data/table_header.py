"""Header of a table: its encoding, its delimiter and the names of its columns."""

import codecs
import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sft_lightning.data.column_names import count_known, normalize_name

DELIMITERS = ",;\t|"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def find_mark(head: bytes) -> str | None:
    """Return the encoding that the first three bytes of a file mark, or None.

    Args:
        head: First bytes of the file.
    """
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def find_header(
    lines: Iterable[str], count: Callable[[Sequence[str]], int], delimiters: str = DELIMITERS
) -> tuple[str, list[str]]:
    """Return the delimiter and the column names, skipping blank lines and comments before them.

    Args:
        lines: Lines of a table, of which those up to the header are taken.
        count: Function that counts the known names among some, by which the delimiter is chosen.
        delimiters: Possible delimiters.
    """
    for text in lines:
        bare = text.strip()
        if bare.lower().startswith("sep=") and len(bare) <= 5:  # written and read by spreadsheet programs
            delimiters = bare[4:] or "\t"
        elif bare:
            headers = {d: next(csv.reader([text], delimiter=d, skipinitialspace=True)) for d in delimiters}
            best = max(headers, key=lambda d: (count(headers[d]), len(headers[d])))
            if not bare.startswith("#") or count(headers[best]):
                return best, headers[best]
    return ",", []


def read_column_names(path: Path) -> list[str]:
    """Return the names of the columns of a `.csv`, or another text of that kind, or `.parquet` file.

    Args:
        path: Path of the table; of one that cannot be read, which opening it explains, no name is returned.
    """
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet as parquet

            return list(parquet.read_schema(path).names)
        except (ImportError, OSError, ValueError):
            return []
    with path.open("rb") as raw:
        encoding = find_mark(raw.read(3)) or "utf-8"
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        return find_header(file, lambda names: count_known(names) + ("text" in map(normalize_name, names)))[1]
