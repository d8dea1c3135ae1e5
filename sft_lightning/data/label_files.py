"""CSV files of labels, `id,label[,status]`: read by the setting `labels` of the data."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.spreadsheet import format_csv, restore_cell

SKIPPED, UNSURE = "skip", "unsure"  # values of `status` for examples that were seen and got no label
STATUSES = ("", SKIPPED, UNSURE)
_NEEDED = ("id", "label")


class LabelRow(NamedTuple):
    """Row of a file of labels.

    Attributes:
        id: Name of the example, as in `split.csv` and `select.csv`.
        label: Name of its class; empty for none.
        status: One of `STATUSES`: empty for a label that counts.
        line: Line of the file.
    """

    id: str
    label: str
    status: str = ""
    line: int = 0


def read_label_rows(path: Path, setting: str = "labels") -> list[LabelRow]:
    """Read all rows of a file of labels; columns with other names are ignored.

    Args:
        path: Path of the file.
        setting: Name of the setting, for messages.

    Raises:
        InputError: The file cannot be read, lacks a column, lists an example twice, or has a row that does not fit its
            header; the message names the line.
    """
    rows = list(_iterate_rows(path, f"{setting} {str(path)!r}"))
    first: dict[str, LabelRow] = {}
    for row in rows:
        if (twin := first.setdefault(row.id, row)) is not row:
            raise InputError(
                f"{setting} {str(path)!r}, line {row.line}: {row.id!r} is already on line {twin.line}: keep one of them"
            )
    return rows


def read_table(path: Path, where: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV whose cells `format_csv` protects, with the line that each begins on.

    Args:
        path: Path of the file, UTF-8.
        where: Setting and path, for messages.
        needed: Names of required columns.

    Raises:
        InputError: The file cannot be read, lacks a column, or has a row that does not fit its header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if missing := [name for name in needed if name not in names]:
                raise InputError(
                    f"{where} lacks the column {' and '.join(map(repr, missing))}; its columns are "
                    f"{', '.join(map(repr, names)) or 'none'}: name them in the first line, separated by commas"
                )
            line = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    if len(cells) != len(names):
                        raise InputError(
                            f"{where}, line {line}: it has {len(cells)} cells and the header has {len(names)}: quote a "
                            "cell that holds a comma"
                        )
                    yield line, dict(zip(names, map(restore_cell, cells), strict=True))
                line = reader.line_num + 1
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}): give a CSV with {','.join(needed)}") from error
    except UnicodeError as error:
        raise InputError(f"{where} is not UTF-8 text: save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num} is not readable as CSV ({error}): correct it") from error


def _iterate_rows(path: Path, where: str) -> Iterator[LabelRow]:
    for line, cells in read_table(path, where, _NEEDED):
        status = cells.get("status", "").strip()
        if status not in STATUSES:
            raise InputError(
                f"{where}, line {line}: status {status!r} is none of {SKIPPED}, {UNSURE} or blank"
                f"{did_you_mean(status, STATUSES[1:])}"
            )
        if not cells["id"]:
            raise InputError(f"{where}, line {line}: the id is blank: name the example, or remove the line")
        yield LabelRow(cells["id"], cells["label"], status, line)


def write_label_rows(path: Path, rows: Iterable[LabelRow]) -> None:
    """Write a file of labels atomically.

    Args:
        path: Path of the file; its folder is made.
        rows: Rows in the order of the file.

    Raises:
        InputError: The disk is full, or the folder may not be written to.
    """
    write_text(path, format_csv([("id", "label", "status"), *((row.id, row.label, row.status) for row in rows)]))
