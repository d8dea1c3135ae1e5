"""Pictures listed in a table: CSV or Parquet with the columns `path,label[,split][,group]`."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sft_lightning.class_names import sort_classes
from sft_lightning.data.faults import STRADDLING, UNTRAINED, fault
from sft_lightning.data.images import FileImages
from sft_lightning.data.parts import SPLITS, Part, Source
from sft_lightning.errors import InputError, near


class ManifestSource(Source):
    """A table with the columns `path,label[,split][,group]`; a blank label means unlabeled.

    Paths are relative to the table's folder, and lead to files in it or in `root`. `split` is train, val, test,
    unlabeled or blank (train).
    """

    def __init__(self, path: Path, root: str = "data", skip: bool = False) -> None:
        """Reads the table and checks every line.

        Args:
            path: `.csv` (UTF-8) or `.parquet` (extra `parquet`).
            root: A second folder that its files may lie in.
            skip: Lines without a file are let through; whoever reads them leaves them out.

        Raises:
            InputError: A path leads elsewhere, a column, file or label is missing, or a line contradicts another one;
                the line is named.
        """
        self.path, self._skip = path, skip
        self.name = str(path)
        self._root = root
        if not path.is_file():
            raise InputError(f"manifest {self.name!r} does not exist: give the path of a .csv or .parquet file")
        rows = parquet_rows(path) if path.suffix.lower() == ".parquet" else csv_rows(path)
        self._rows = self._once([self._checked(line, row) for line, row in rows])
        if not self._rows:
            raise InputError(f"manifest {self.name!r} has no line below its header: list one image per line")
        self._refuse_untrained()
        self._refuse_straddling()
        labels = sort_classes({row["label"] for row in self._rows if row["label"]})
        if not labels:
            raise InputError(
                f"manifest {self.name!r} has no label at all: fill the column 'label' for some lines, "
                "or give the folder itself for training without labels"
            )
        self.class_names = labels

    def _checked(self, line: int, row: dict[str, str]) -> dict[str, str]:
        where = f"manifest {self.name!r}, line {line}"
        if not row["path"]:
            raise InputError(f"{where}: the path is blank")
        check_inside(self.path, line, row["path"], self._root)
        row["split"] = row["split"].lower() or ("train" if row["label"] else "unlabeled")
        file = self.path.parent / row["path"]
        if not self._skip and not file.is_file():
            what = "a folder" if file.is_dir() else "a broken link" if file.is_symlink() else "missing"
            sentence = f"{where}: file {row['path']!r} does not exist below {str(self.path.parent)!r}"
            fault("lines without a file", row["split"], row["path"], f"{what}, line {line}", sentence)
        row["path"] = Path(row["path"]).as_posix()  # ./a.png is a.png
        if row["split"] not in SPLITS:
            raise InputError(f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)} or blank")
        if not row["label"] and row["split"] in ("val", "test"):
            raise InputError(f"{where}: split {row['split']!r} needs a label; leave the split blank for unlabeled")
        return {**row, "line": str(line)}

    def _once(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """The rows, each picture once."""
        first: dict[str, dict[str, str]] = {}
        for row in rows:
            twin = first.setdefault(row["path"], row)
            if twin is not row:
                sentence = (
                    f"manifest {self.name!r}, line {row['line']}: {row['path']!r} stands on line {twin['line']} "
                    "already; list each image once"
                )
                detail = f"line {row['line']} repeats line {twin['line']}"
                fault("lines that name an image again", row["split"], row["path"], detail, sentence)
        return list(first.values())

    def _refuse_straddling(self) -> None:
        """A group must not stand in two of training, validation and test."""
        places: dict[str, dict[str, str]] = {}
        for row in self._rows:
            if row["group"]:
                split = "train" if row["split"] == "unlabeled" else row["split"]
                places.setdefault(row["group"], {}).setdefault(split, row["line"])
        for group, found in places.items():
            if len(found) > 1:
                told = " and ".join(f"{split} (line {line})" for split, line in found.items())
                sentence = f"manifest {self.name!r}: group {group!r} stands in {told}; keep it in one split"
                fault(STRADDLING, " and ".join(found), group, f"in {told}", sentence)

    def _refuse_untrained(self) -> None:
        trained = sorted({row["label"] for row in self._rows if row["label"] and row["split"] == "train"})
        for row in self._rows if trained else []:
            if row["split"] in ("val", "test") and row["label"] not in trained:
                sentence = (
                    f"manifest {self.name!r}, line {row['line']}: no training image has the class {row['label']!r} of "
                    f"this {row['split']} image{near(row['label'], trained)}; correct it or add training images"
                )
                fault(UNTRAINED, row["split"], row["path"], f"class {row['label']!r}", sentence)

    def load(self) -> dict[str, Part]:
        """Makes the parts; no picture is read."""
        number = {name: i for i, name in enumerate(self.class_names)}
        grouped = any(row["group"] for row in self._rows)
        parts = {}
        for split in SPLITS:
            rows = [row for row in self._rows if row["split"] == split]
            if rows:
                ids = [row["path"] for row in rows]
                paths = [self.path.parent / row["path"] for row in rows]
                # A hidden label of a line marked `unlabeled` is read: it can be measured against, never trained on.
                labels = torch.tensor([number.get(row["label"], -1) for row in rows])
                groups = [row["group"] or row["path"] for row in rows] if grouped else None
                parts[split] = Part(FileImages(paths, ids), ids, labels, groups)
        return parts


def check_inside(table: Path, line: int, name: str, root: str) -> None:
    """Makes sure that a path of a table leads into a folder that the user named: the table's own, or `root`.

    Paths are compared as they are written. A link inside these folders is followed wherever it leads: whoever may put
    one there could put the file there, too, and data sets are often linked.

    Args:
        table: The file.
        line: Of the path.
        name: The path.
        root: The second folder.

    Raises:
        InputError: It leads elsewhere.
    """
    file = os.path.abspath(os.path.join(table.parent, name))
    if not any(_is_below(file, os.path.abspath(folder)) for folder in (table.parent, root)):
        raise InputError(
            f"manifest {str(table)!r}, line {line}: path {name!r} leads out of the folder {str(table.parent)!r}: "
            "correct it, or name the folder of its files by root"
        )


def _is_below(file: str, folder: str) -> bool:
    return file.startswith(os.path.join(folder, ""))


_COLUMNS = ("path", "label", "split", "group")
_ROWS = 4096  # of a Parquet file that are in memory at a time


def _need_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"manifest {str(path)!r} lacks the column {' and '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, names)) or 'none'}, needed are path,label[,split][,group]"
        )


def csv_rows(path: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a CSV.

    Args:
        path: The file, UTF-8.
        needed: Columns that it must have.

    Yields:
        The number of a line and its known columns, blank where missing.

    Raises:
        InputError: A column is missing or the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _need_columns(path, [(name or "").strip() for name in reader.fieldnames or []], needed)
            reader.fieldnames = [(name or "").strip() for name in reader.fieldnames or []]
            for row in reader:
                yield reader.line_num, {name: (row.get(name) or "").strip() for name in _COLUMNS}
    except UnicodeDecodeError as error:
        raise InputError(f"manifest {str(path)!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"manifest {str(path)!r} is no readable CSV: {error}") from error


def parquet_rows(path: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a Parquet file (extra `parquet`), some thousand rows at a time.

    Args:
        path: The file.
        needed: Columns that it must have.

    Yields:
        The number of a row, from 1, and its known columns, blank where missing.

    Raises:
        InputError: A column is missing, the file cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"manifest {str(path)!r} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _need_columns(path, file.schema_arrow.names, needed)
            known = [name for name in _COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(_ROWS, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: _text(row.get(name)) for name in _COLUMNS}
    except (OSError, ValueError) as error:
        raise InputError(f"manifest {str(path)!r} is no readable Parquet file: {error}") from error


def _text(value: object) -> str:
    """What a cell says; nothing where it is empty or no number."""
    return "" if value is None or value != value else str(value).strip()
