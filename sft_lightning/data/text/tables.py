"""Rows of tables of texts: CSV, TSV, JSON lines and Parquet, with columns by name."""

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft_lightning.data.column_names import normalize_name
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_columns import ColumnReader, LabelColumns
from sft_lightning.data.table_cells import convert_cell, find_kinds, parse_json_row, replace_halves
from sft_lightning.data.table_header import DELIMITERS, find_header
from sft_lightning.data.text.encodings import guess_encoding
from sft_lightning.data.unused_columns import UnusedColumns
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.spreadsheet import restore_cell

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_UNSEEN = ("Cc", "Cf", "Cs")
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
        self._unused = UnusedColumns(self._where, [], [], [], [])
        self._mended: list[str] = []
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
            self.findings += self._describe()
        except OSError as error:
            raise InputError(f"{self._where} cannot be read ({error.strerror or error}): check the file") from error
        except UnicodeError as error:
            raise InputError(f"{self._where} is not text ({error}): save it as UTF-8") from error

    def _describe(self) -> list[Finding]:
        """Return findings about the columns and rows that were read.

        Raises:
            InputError: A column that is not read holds splits or groups.
        """
        findings = [*([] if self._reader is None else self._reader.describe()), *self._unused.describe()]
        if self._mended:
            count = "1 text has" if len(self._mended) == 1 else f"{len(self._mended):,} texts have"
            message = f"{self._where}: {count} halves of characters, read as \ufffd ({', '.join(self._mended[:3])})"
            findings.append(Finding("file_format", message, self._mended))
        return findings

    # --- columns

    def _find(self, names: Sequence[str], given: Sequence[str] = ()) -> dict[str, str]:
        """Return the name of each column that the table has, as it is written there, by its role.

        Args:
            names: Names of all columns.
            given: Roles that something else than a column has.
        """
        roles = self._columns.roles
        if self._label_columns is not None:
            del roles["label"]
            self._reader = ColumnReader(self._label_columns, names, self._where, self._needs_labels)
            self.column_classes = (*self._reader.classes,)
        plain: dict[str, str] = {}
        wanted_names = {role: normalize_name(wanted) for role, wanted in roles.items()}
        for name in names:
            if (key := normalize_name(name)) in plain and key in wanted_names.values():
                raise InputError(f"{self._where} has the column {name!r} twice: keep one, or rename one")
            plain.setdefault(key, name)
        found = {role: plain[key] for role, key in wanted_names.items() if key in plain}
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
        unused = [i for i, name in enumerate(names) if name not in found.values()]
        known = [name for role, name in roles.items() if role in found or role in ("split", "group")]
        there = {"path", "label", *found, *given}  # of the first, texts have none
        self._unused = UnusedColumns(self._where, names, unused, there, known, has_settings=True)
        if not self._needs_labels:
            self._unused.watched = []  # splits and groups decide nothing
        return found

    def _make(self, line: int, cells: dict[str, str]) -> Row:
        texts = (cells["text"],) if self._columns.text_2 is None else (cells["text"], cells["text_2"])
        label, split, group, name = (cells.get(role, "").strip() for role in ("label", "split", "group", "id"))
        if self._reader is not None:
            label = self._reader.read(line, {name: cells[f"class {name}"] for name in self._reader.classes})
        for role, cell in (("label", label), ("split", split), ("group", group), ("id", name)):
            if len(cell.splitlines()) > 1:
                raise InputError(
                    f"{self._where}, line {line}: the {role} has a line break in it ({cell[:40]!r}): close the quote "
                    "before it"
                )
        augmented = tuple(cells[f"augmented {i}"] for i in range(len(self._columns.augmented)))
        return Row(line, texts, label, split, group, name, augmented)

    # --- formats

    def _read_csv(self) -> Iterator[Row]:
        csv.field_size_limit(_LIMIT)
        with self._path.open(newline="", encoding=self._find_encoding()) as file:
            lines = _Lines(file, self._where)
            wanted = {normalize_name(name) for name in self._columns.roles.values()}
            delimiter, names = find_header(
                lines,
                lambda names: sum(normalize_name(name) in wanted for name in names),
                "\t" if self._path.suffix.lower() == ".tsv" else DELIMITERS,
            )
            found = {role: names.index(name) for role, name in self._find(names).items()}
            reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
            try:
                while True:
                    line = lines.number + 1
                    cells = next(reader, None)
                    if cells is None:
                        break
                    if not any(cells):
                        continue
                    self._check_row(line, cells, names, delimiter)
                    yield self._make(line, {role: restore_cell(cells[at]) for role, at in found.items()})
                    self._watch(cells)
            except csv.Error as error:
                raise InputError(
                    f'{self._where}, line {lines.number}: it is not readable as CSV ({error}): put quotes (") '
                    "around texts with quotes or line breaks in them, and double the quotes inside"
                ) from error

    def _check_row(self, line: int, cells: Sequence[str], names: Sequence[str], delimiter: str) -> None:
        if list(cells) == list(names):  # concatenated tables
            raise InputError(f"{self._where}, line {line}: it repeats the header: remove the line")
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise InputError(
                f"{self._where}, line {line}: it has {len(cells)} cells and the header has {len(names)}: "
                f"put quotes around a text with {delimiter!r} in it"
            )

    def _watch(self, cells: Sequence[str]) -> None:
        """Take the cells of columns that are not read into account."""
        self._unused.watch([cells[i].strip() for i in self._unused.watched])

    def _read_json(self) -> Iterator[Row]:
        rows: list[tuple[int, dict[str, Any]]] = []
        with self._path.open(encoding=self._find_encoding()) as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                row = parse_json_row(text, f"{self._where}, line {line}")
                rows.append((line, row))
        names = [*dict.fromkeys(name for _, row in rows for name in row)]  # each row may lack some
        found = self._find(names)
        for line, row in rows:
            yield self._make(line, self._convert_row(row, found, line))
            self._watch_row(row, names)

    def _read_parquet(self) -> Iterator[Row]:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise InputError(
                f"{self._where} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
            ) from error
        try:
            with parquet.ParquetFile(self._path) as file:
                names, line = file.schema_arrow.names, 0
                found = self._find(names)
                self._unused.watch_only(*find_kinds(file.schema_arrow))
                wanted = [*found.values(), *(names[i] for i in self._unused.watched)]
                for batch in file.iter_batches(4096, columns=wanted):
                    for row in batch.to_pylist():
                        line += 1
                        yield self._make(line, self._convert_row(row, found, line))
                        self._watch_row(row, names)
        except ValueError as error:  # of pyarrow
            raise InputError(f"{self._where} is not a readable Parquet file ({error}): write it again") from error

    def _convert_row(self, row: dict[str, Any], found: dict[str, str], line: int) -> dict[str, str]:
        return {role: self._convert(row.get(name), line, name, role) for role, name in found.items()}

    def _convert(self, value: Any, line: int, column: str, role: str) -> str:
        if isinstance(value, str) and role.startswith(("text", "augmented")) and value != replace_halves(value):
            self._mended.append(f"line {line}")
            value = replace_halves(value)
        return convert_cell(value, f"{self._where}, line {line}", column, role)

    def _watch_row(self, row: dict[str, Any], names: Sequence[str]) -> None:
        watched = self._unused.watched
        self._unused.watch([convert_cell(row.get(names[i]), "", names[i], "").strip() for i in watched])

    def _find_encoding(self) -> str:
        """Return the encoding of the file: that of its mark, UTF-8, or Windows-1252, which is reported."""
        with self._path.open("rb") as file:
            guess = guess_encoding(file, self._where)
        if guess.line:
            message = (
                f"{self._where} is not UTF-8 (line {guess.line}), and is read as Windows-1252, with {guess.letter!r} "
                "there: save it as UTF-8 if that is wrong"
            )
            self.findings.append(Finding("file_format", message, [str(self._path)]))
        return guess.encoding


class _Lines:
    """Iterator over the lines of a table that counts them, and refuses those that are not text."""

    def __init__(self, lines: Iterable[str], where: str) -> None:
        self.number = 0
        self._lines, self._where = iter(lines), where

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._lines)
        self.number += 1
        if "\0" in text:
            raise InputError(f"{self._where}, line {self.number}: it has a NUL byte: save the table as UTF-8 text")
        return text


def is_blank(text: str) -> bool:
    """Return whether a text has nothing that can be seen.

    Args:
        text: Text; spaces, control characters and those without width are not seen.
    """
    return not text.strip() or all(letter.isspace() or unicodedata.category(letter) in _UNSEEN for letter in text)
