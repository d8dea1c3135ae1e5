"""Names of the columns of a table, to see what kind of table it is."""

import csv
from pathlib import Path


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
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
    return next(csv.reader([head], delimiter=max(",;\t|", key=head.count)), [])
