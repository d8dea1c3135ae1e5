"""Read the rows of CSV, JSON lines and Parquet files strictly: a malformed row is an error that names its line."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sft_lightning.data.column_names import KNOWN, count_known
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_columns import ColumnReader, LabelColumns
from sft_lightning.data.table_cells import convert_cell, find_kinds, parse_json_row
from sft_lightning.data.table_columns import TableColumns
from sft_lightning.data.table_header import find_header, find_mark
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.spreadsheet import restore_cell

_ROWS = 4096  # rows of a Parquet file in memory at once
JSON_LINES = (".jsonl", ".ndjson")
_FILE_NAME = re.compile(r"[^\s].*\.\w{1,5}")


class TableRows:
    """Rows of a `.csv`, `.jsonl` or `.parquet` file: line number and known columns, blank where missing.

    Attributes:
        messages: Findings about unused columns, complete after all rows were read.
        column_classes: Classes that have a column of 0 and 1, known after the first row was read.
    """

    def __init__(
        self,
        path: Path,
        needed: Sequence[str] = ("path", "label"),
        known: Sequence[str] = KNOWN,
        label_columns: LabelColumns | None = None,
        needs_labels: bool = True,
    ) -> None:
        """Remember what to read.

        Args:
            path: Path of the file.
            needed: Names of required columns.
            known: Names of columns that are read.
            label_columns: Columns of 0 and 1 that become the cell `label`; None for the column of this name.
            needs_labels: Whether these columns must exist.
        """
        self.messages: list[Finding] = []
        self.column_classes: tuple[str, ...] = ()
        self._label_columns, self._needs_labels = label_columns, needs_labels
        if label_columns is not None:
            needed, known = [n for n in needed if n != "label"], [n for n in known if n != "label"]
        self._path, self._needed, self._known = path, needed, known
        self._where = f"manifest {str(path)!r}"
        self._reader: ColumnReader | None = None

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Read the rows, a Parquet file 4,096 rows at a time.

        Raises:
            InputError: The file cannot be read, a column is missing or holds splits or groups under another name, or a
                row does not fit the header.
        """
        suffix = self._path.suffix.lower()
        yield from self._read_parquet() if suffix == ".parquet" else self._read_text()

    def _read_text(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            with self._path.open("rb") as raw:
                encoding = find_mark(raw.read(3)) or "utf-8"
            with self._path.open(newline="", encoding=encoding) as file:
                lines = _Lines(self._where, file)
                is_json = self._path.suffix.lower() in JSON_LINES
                yield from self._read_json_rows(lines) if is_json else self._read_csv_rows(lines)
        except UnicodeError as error:
            if encoding == "utf-16":
                raise InputError(f"{self._where} begins as UTF-16 text and is damaged: save it as UTF-8") from error
            raise InputError(self._describe_encoding()) from error
        except OSError as error:
            raise InputError(f"{self._where} cannot be read ({error.strerror}): fix its permissions") from error

    def _describe_encoding(self) -> str:
        """Name the first line that is not UTF-8, its character in Windows-1252, and how to convert the file."""
        what = ""
        with self._path.open("rb") as raw:
            for number, line in enumerate(raw, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = line[error.start : error.start + 1]
                    meant = byte.decode("cp1252", errors="ignore")
                    also = f", {meant!r} in Windows-1252" if meant else ""
                    what = f", line {number}: byte {error.start + 1} (0x{byte.hex()}{also})"
                    break
        return (
            f"{self._where}{what} is not UTF-8 text: save it as 'CSV UTF-8' in a spreadsheet program, or convert it by "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        )

    def _read_csv_rows(self, lines: "_Lines") -> Iterator[tuple[int, dict[str, str]]]:
        delimiter, names = find_header(lines, count_known)
        columns = self._find_columns(names)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        while True:
            line = lines.begin_row()
            try:
                cells = [restore_cell(cell.strip()) for cell in next(reader)]
            except StopIteration:
                break
            except csv.Error as error:
                raise lines.explain_error(line, delimiter, error) from error
            if not any(cells):
                continue
            self._check_row(line, cells, names, columns, delimiter)
            row = {n: cells[columns.positions[n]] if n in columns.positions else "" for n in self._known}
            yield line, self._add_label(line, row, {name: cells[i] for name, i in columns.class_positions.items()})
            columns.unused.watch([cells[i] for i in columns.unused.watched])
        self._finish(columns)

    def _read_json_rows(self, lines: "_Lines") -> Iterator[tuple[int, dict[str, str]]]:
        rows: list[tuple[int, dict[str, object]]] = []
        for text in lines:
            if not text.strip():
                continue
            row = parse_json_row(text, f"{self._where}, line {lines.number}")
            rows.append((lines.number, row))
        names = [*dict.fromkeys(name for _, row in rows for name in row)]  # each row may lack some
        columns = self._find_columns(names)
        found = {name: names[i] for name, i in columns.positions.items()}
        for line, row in rows:
            where = f"{self._where}, line {line}"
            cells = {name: _convert_cell(row.get(key), where, key, name) for name, key in found.items()}
            marks = {
                names[i]: _convert_cell(row.get(names[i]), where, names[i], "")
                for i in columns.class_positions.values()
            }
            yield line, self._add_label(line, {name: cells.get(name, "") for name in self._known}, marks)
            columns.unused.watch(
                [_convert_cell(row.get(names[i]), where, names[i], "") for i in columns.unused.watched]
            )
        self._finish(columns)

    def _find_columns(self, names: Sequence[str]) -> TableColumns:
        self._reader = None
        if self._label_columns is not None:
            self._reader = ColumnReader(self._label_columns, names, self._where, self._needs_labels)
            self.column_classes = (*self._reader.classes,)
        classes = {} if self._reader is None else self._reader.classes
        return TableColumns(str(self._path), names, self._needed, self._known, classes.values())

    def _add_label(self, line: int, row: dict[str, str], marks: Mapping[str, str]) -> dict[str, str]:
        """Return a row with the label that its columns of 0 and 1 give, if these are read."""
        if self._reader is None:
            return row
        label = self._reader.read(line, {name: marks[column] for name, column in self._reader.classes.items()})
        return {**row, "label": label}

    def _finish(self, columns: TableColumns) -> None:
        self.messages = columns.unused.describe() + ([] if self._reader is None else self._reader.describe())

    def _check_row(
        self, line: int, cells: Sequence[str], names: Sequence[str], columns: TableColumns, delimiter: str
    ) -> None:
        """Refuse a row whose length differs from the header's, or whose unclosed quote swallows the lines below."""
        where = f"{self._where}, line {line}"
        if cells == [name.strip() for name in names]:  # concatenated tables
            raise InputError(f"{where}: it repeats the header: remove the line")
        if len(cells) < len(names) or any(cells[len(names) :]):
            remedy = f"put quotes around a cell with {delimiter!r} in it"
            if len(cells) < len(names):
                remedy = f"write the {delimiter!r} of blank cells, too"
            raise InputError(f"{where}: it has {_count_cells(len(cells))} and the header has {len(names)}: {remedy}")
        for i, cell in enumerate(cells[: len(names)]):
            below = re.split("\r\n|\r|\n", cell)[1:]
            if not below:
                continue
            at = columns.positions["path"]
            rows = [text.split(delimiter) for text in below]
            is_row = any(len(row) == len(names) and _FILE_NAME.fullmatch(row[at].strip(' "')) for row in rows)
            is_path = i == at
            if (
                (not is_path and i in columns.positions.values())
                or (len(names) > 1 and is_row)
                or (is_path and any(delimiter in text for text in below))
            ):
                more = "the line" if len(below) == 1 else f"the {len(below)} lines"
                raise InputError(
                    f"{where}: a quote that opens in the column {names[i].strip()!r} takes in {more} below it: close "
                    "it on its own line"
                )
        for i, cell in enumerate(cells[: len(names)]):
            if cell and not names[i].strip() and i and not cell.replace(".", "").isdecimal():
                raise InputError(f"{where}: the cell {cell!r} is in column {i + 1}, which has no name: name it")

    def _read_parquet(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise InputError(
                f"{self._where} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
            ) from error
        number = 0
        try:
            with parquet.ParquetFile(self._path) as file:
                schema = file.schema_arrow
                columns = self._find_columns(schema.names)
                columns.unused.watch_only(*find_kinds(schema))
                known = {schema.names[i]: name for name, i in columns.positions.items()}
                extra = [schema.names[i] for i in columns.unused.watched]
                marked = [*columns.class_positions]
                for batch in file.iter_batches(_ROWS, columns=[*known, *marked, *extra]):
                    for row in batch.to_pylist():
                        number += 1
                        where = f"{self._where}, line {number}"
                        cells = {
                            name: _convert_cell(row[column], where, column, name) for column, name in known.items()
                        }
                        marks = {name: _convert_cell(row[name], where, name, "") for name in marked}
                        yield number, self._add_label(number, {n: cells.get(n, "") for n in self._known}, marks)
                        names = [schema.names[i] for i in columns.unused.watched]
                        columns.unused.watch([_convert_cell(row[name], where, name, "") for name in names])
        except (OSError, ValueError) as error:
            raise InputError(f"{self._where} is not a readable Parquet file: {error}") from error
        self._finish(columns)


class _Lines:
    """Iterator over the lines of a CSV that counts them and keeps the lines of the current row."""

    def __init__(self, where: str, file: Iterator[str]) -> None:
        self.number = 0
        self._where, self._file = where, file
        self._row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._file)
        self.number += 1
        if "\0" in text:
            raise InputError(f"{self._where}, line {self.number}: it has a NUL byte: save the table as UTF-8 text")
        self._row.append(text)
        return text

    def begin_row(self) -> int:
        """Return the number of the line in which the next row begins."""
        self._row.clear()
        return self.number + 1

    def explain_error(self, line: int, delimiter: str, error: csv.Error) -> InputError:
        """Return the error for the row that begins on a line, pointing at the quote that does not close."""
        quote = re.compile(f'(?:^|[{re.escape(delimiter)}\r\n]) *(")(?:[^"]|"")*')
        matches = list(quote.finditer("".join(self._row)))
        if not matches:
            return InputError(f"{self._where}, line {line} is not readable as CSV: {error}")
        opens = "".join(self._row)[: matches[-1].start(1)]
        opened = line + len(re.findall("\r\n|\r|\n", opens))
        return InputError(
            f'{self._where}, line {opened}: a quote (") opens a cell that it does not close (read up to line '
            f"{self.number}): close it, or double each quote inside a quoted cell"
        )


def _count_cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _convert_cell(value: object, where: str, column: str, name: str) -> str:
    return convert_cell(value, where, column, name).strip()
