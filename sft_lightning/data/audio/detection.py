"""Whether a source holds recordings."""

from itertools import islice
from pathlib import Path

from sft_lightning.data.audio.sources import RECORDINGS, TABLES
from sft_lightning.data.table_rows import TableRows
from sft_lightning.utils.errors import InputError

_LISTED = 2000  # files of a folder that are looked at


def holds(source: str) -> bool:
    """Return whether a source is a folder of mostly recordings, or a table whose first path is that of one.

    Args:
        source: Source as the user named it.
    """
    path = Path(source)
    if path.is_dir():
        names = [file.name.lower() for file in islice(path.rglob("*.*"), _LISTED)]
        count = sum(map(RECORDINGS.is_named, names))
        return count > 0 and count >= len(names) - count
    if path.suffix.lower() not in TABLES or not path.is_file():
        return False
    try:
        return any(RECORDINGS.is_named(row["path"]) for _, row in islice(TableRows(path, ("path",)), 1))
    except InputError:  # which opening it explains
        return False
