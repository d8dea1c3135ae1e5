"""Rows of tables of texts: CSV, TSV, JSON lines and Parquet, with columns by name."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft_lightning.data.issues import Finding
from sft_lightning.data.label_columns import ColumnReader, LabelColumns
from sft_lightning.utils.errors import InputError, did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_LIMIT = 2**27  # letters of a cell


class Columns(NamedTuple):
    """Names of the columns of a table.

    Attributes:
        text: Text.
        text_2: Second text that belongs to it, or None.
        label: Label; blank for unlabeled texts.
        split: Split; the table may lack it.
        group: Group; the table may lack it.
        augmented: Other wordings of the text, made beforehand.
    """

    text: str = "text"
    text_2: str | None = None
    label: str = "label"
    split: str = "split"
    group: str = "group"
    augmented: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, str]:
        """Name of each column by its role, those that are null left out."""
        single = {role: name for role, name in self._asdict().items() if isinstance(name, str)}
        return {**single, "id": "id", **{f"augmented {i}": name for i, name in enumerate(self.augmented)}}


class Row(NamedTuple):
    """Row of a table, with empty strings where it has nothing.

    Attributes:
        line: Number of the line in which it begins, or of the row in Parquet.
        texts: Text, and the second one if there is one.
        label: Label.
        split: Split.
        group: Group.
        id: Name from a column `id`.
        augmented: Other wordings of the text; empty strings where it has none.
    """

    line: int
    texts: tuple[str, ...]
    label: str
    split: str
    group: str
    id: str
    augmented: tuple[str, ...] = ()


class TextTable:
    """Rows of a table of texts.

    Attributes:
        findings: What the user should know about the file, complete after all rows were read.
        column_classes: Classes that have a column of 0 and 1, known after the first row was read.
    """

    def __init__(
        self, path: Path, columns: Columns, needs_labels: bool, label_columns: LabelColumns | None = None
    ) -> None:
        """Remember what to read.

        Args:
            path: Path of the file.
            columns: Names of its columns.
            needs_labels: Whether the column of labels must exist.
            label_columns: Columns of 0 and 1 in place of that column, each a class.
        """
        self._path, self._columns, self._needs_labels = path, columns, needs_labels
        self._label_columns = label_columns
        self._reader: ColumnReader | None = None
        self.column_classes: tuple[str, ...] = ()
        self._where = f"table {str(path)!r}"
        self.findings: list[Finding] = []

    def __iter__(self) -> Iterator[Row]:
        """Read the rows.

        Raises:
            InputError: The file cannot be read, a column is missing, or a row does not fit the header.
        """
        suffix = self._path.suffix.lower()
        read = {".parquet": self._read_parquet, ".jsonl": self._read_json, ".ndjson": self._read_json}
        try:
            yield from read.get(suffix, self._read_csv)()
            self.findings += [] if self._reader is None else self._reader.describe()
        except OSError as error:
            raise InputError(f"{self._where} cannot be read ({error.strerror or error}): check the file") from error
        except UnicodeError as error:
            raise InputError(f"{self._where} is not text ({error}): save it as UTF-8") from error

    # --- columns

    def _find(self, names: Sequence[str]) -> dict[str, str]:
        """Return the name of each column that the table has, as it is written there, by its role."""
        roles = self._columns.roles
        if self._label_columns is not None:
            del roles["label"]
            self._reader = ColumnReader(self._label_columns, names, self._where, self._needs_labels)
            self.column_classes = (*self._reader.classes,)
        plain: dict[str, str] = {}
        for name in names:
            if (key := name.strip().casefold()) in plain and key in roles.values():
                raise InputError(f"{self._where} has the column {name!r} twice: keep one, or rename one")
            plain.setdefault(key, name)
        found = {
            role: plain[wanted.strip().casefold()]
            for role, wanted in roles.items()
            if wanted.strip().casefold() in plain
        }
        optional = {"split", "group", "id", *([] if self._needs_labels else ["label"])}
        for role, wanted in roles.items():
            if role not in found and role not in optional:
                setting = "augmented_columns" if role.startswith("augmented") else f"{role}_column"
                raise InputError(
                    f"{self._where} lacks the column {wanted!r}{did_you_mean(wanted, [*names])}; its columns are "
                    f"{', '.join(map(repr, names)) or 'none'}: name the right one with {setting}, or rename it"
                )
        if self._reader is not None:
            found |= {f"class {name}": column for name, column in self._reader.classes.items()}
        ignored = [name for name in names if name.strip() and name not in found.values()]
        if ignored:
            message = f"{self._where}: columns that are not read: {', '.join(map(repr, ignored[:8]))}"
            self.findings.append(Finding("ignored", message, ignored))
        return found

    def _make(self, line: int, cells: dict[str, str]) -> Row:
        texts = (cells["text"],) if self._columns.text_2 is None else (cells["text"], cells["text_2"])
        label, split, group, name = (cells.get(role, "").strip() for role in ("label", "split", "group", "id"))
        if self._reader is not None:
            label = self._reader.read(line, {name: cells[f"class {name}"] for name in self._reader.classes})
        augmented = tuple(cells[f"augmented {i}"] for i in range(len(self._columns.augmented)))
        return Row(line, texts, label, split, group, name, augmented)

    # --- formats

    def _read_csv(self) -> Iterator[Row]:
        encoding = self._find_encoding()
        csv.field_size_limit(_LIMIT)
        with self._path.open(newline="", encoding=encoding) as file:
            first = file.readline()
            file.seek(0)
            delimiter = "\t" if self._path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
            reader = csv.reader(_refuse_nul(file, self._where), delimiter=delimiter, strict=True)
            try:
                names = next(reader, [])
                found = {role: names.index(name) for role, name in self._find(names).items()}
                while True:
                    line = reader.line_num + 1
                    cells = next(reader, None)
                    if cells is None:
                        break
                    if not any(cells):
                        continue
                    if len(cells) != len(names):
                        raise InputError(
                            f"{self._where}, line {line}: it has {len(cells)} cells and the header has {len(names)}: "
                            f"put quotes around a text with {delimiter!r} in it"
                        )
                    yield self._make(line, {role: cells[at] for role, at in found.items()})
            except csv.Error as error:
                raise InputError(
                    f'{self._where}, line {reader.line_num}: it is not readable as CSV ({error}): put quotes (") '
                    "around texts with quotes or line breaks in them, and double the quotes inside"
                ) from error

    def _read_json(self) -> Iterator[Row]:
        rows: list[tuple[int, dict[str, Any]]] = []
        with self._path.open(encoding=self._find_encoding()) as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise InputError(f"{self._where}, line {line}: it is not JSON ({error}): correct it") from error
                if not isinstance(row, dict):
                    raise InputError(f"{self._where}, line {line}: it is not an object in braces: write one per line")
                rows.append((line, row))
        found = self._find([*dict.fromkeys(name for _, row in rows for name in row)])  # each row may lack some
        for line, row in rows:
            yield self._make(line, {role: self._convert(row.get(name), line, name) for role, name in found.items()})

    def _read_parquet(self) -> Iterator[Row]:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise InputError(
                f"{self._where} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
            ) from error
        try:
            with parquet.ParquetFile(self._path) as file:
                found, line = self._find(file.schema_arrow.names), 0
                for batch in file.iter_batches(4096, columns=[*found.values()]):
                    for row in batch.to_pylist():
                        line += 1
                        yield self._make(
                            line, {role: self._convert(row[name], line, name) for role, name in found.items()}
                        )
        except ValueError as error:  # of pyarrow
            raise InputError(f"{self._where} is not a readable Parquet file ({error}): write it again") from error

    def _convert(self, value: Any, line: int, column: str) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, bool | str | int):
            return str(value)
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() else str(value)
        raise InputError(
            f"{self._where}, line {line}: the column {column!r} holds a {type(value).__name__} ({str(value)[:40]!r}): "
            "write text"
        )

    def _find_encoding(self) -> str:
        """Return the encoding of the file: that of its mark, UTF-8, or Windows-1252, which is reported."""
        with self._path.open("rb") as file:
            mark = next((name for bom, name in _MARKS.items() if file.read(3).startswith(bom) or file.seek(0)), None)
            if mark is not None:
                return mark
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    meant = line[error.start : error.start + 1].decode("cp1252", errors="replace")
                    message = (
                        f"{self._where} is not UTF-8 (line {number}), and is read as Windows-1252, with {meant!r} "
                        "there: save it as UTF-8 if that is wrong"
                    )
                    self.findings.append(Finding("file_format", message, [str(self._path)]))
                    return "cp1252"
        return "utf-8"


def _refuse_nul(lines: Iterable[str], where: str) -> Iterator[str]:
    for number, text in enumerate(lines, 1):
        if "\0" in text:
            raise InputError(f"{where}, line {number}: it has a NUL byte: save the table as UTF-8 text")
        yield text
