"""Rows of a data set of Hugging Face in a local folder: Arrow files of `save_to_disk`, or Parquet files.

The files are read by pyarrow (extra `parquet`); the library `datasets` is not needed, and no code of the folder is run.
Names of classes come from the features that the files record.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_lightning.data.issues import Finding
from sft_lightning.data.split_names import UNCLEAR, find_split
from sft_lightning.data.table_cells import find_kinds
from sft_lightning.data.text.tables import Columns, Row, TextTable
from sft_lightning.utils.errors import InputError

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_PARQUET = "*.[pP][aA][rR][qQ][uU][eE][tT]"  # `glob` tells upper case from lower case
_OTHER_TYPES = {"Image", "Audio", "Video", "Pdf"}


def is_dataset_folder(path: Path) -> bool:
    """Return whether a folder holds a data set that was saved to disk, or Parquet files.

    Args:
        path: Folder.
    """
    return any((path / name).is_file() for name in (_DICT, _STATE)) or bool(_list_parquet(path))


def holds_texts(path: Path) -> bool:
    """Return whether a data set has a column `text`, or columns by other names that are neither images nor sounds.

    Args:
        path: Folder for which `is_dataset_folder` is true.
    """
    try:
        names, features = DatasetFolder(path, Columns(), needs_labels=False).read_features()
    except InputError:  # which opening it explains
        return False
    kinds = {feature.get("_type") for feature in features.values() if isinstance(feature, dict)}
    return "text" in names or (bool(features) and not kinds & _OTHER_TYPES)


class DatasetFolder(TextTable):
    """Rows of all splits of a data set."""

    def __init__(self, path: Path, columns: Columns, needs_labels: bool) -> None:
        """Remember what to read."""
        super().__init__(path, columns, needs_labels)
        self._where = f"data set {str(path)!r}"

    def read_features(self) -> tuple[list[str], dict[str, Any]]:
        """Return the names of the columns of the first file, and the features that it records.

        Raises:
            InputError: The folder cannot be read.
        """
        for _, file, features in self._list_files():
            with _Opened(file, self._where) as opened:
                return opened.names, features or opened.features
        raise InputError(f"{self._where} has no file: save it again")

    def __iter__(self) -> Iterator[Row]:
        """Read the rows.

        Raises:
            InputError: The folder cannot be read, or a column is missing.
        """
        counts: dict[str, int] = {}
        left_out: dict[str, int] = {}
        found: dict[str, str] | None = None
        files = self._list_files()
        for split, file, features in files:
            with _Opened(file, self._where) as opened:
                if found is None:
                    names = opened.names
                    found = self._find(names, ["split"] if any(one != "train" for one, *_ in files) else [])
                    self._unused.watch_only(*find_kinds(opened.schema))
                missing = [name for name in found.values() if name not in opened.names]
                if missing:
                    raise InputError(f"{self._where}: {file.name} lacks the column {missing[0]!r}: save it again")
                classes = _read_classes((features or opened.features).get(found.get("label", "")))
                watched = [names[i] for i in self._unused.watched if names[i] in opened.names]
                for row in opened.read([*found.values(), *watched]):
                    line = counts[split] = counts.get(split, 0) + 1
                    cells = {
                        role: self._name_class(row[name], classes, line) if role == "label" and classes
                        else self._convert(row[name], line, name, role) for role, name in found.items()
                    }  # fmt: skip
                    self._watch_row(row, names)
                    own = cells.get("split") or split
                    if not cells.get("label") and own in ("val", "test"):
                        left_out[own] = left_out.get(own, 0) + 1
                        continue
                    made = self._make(line, {**cells, "split": own if cells.get("label") else "unlabeled"})
                    yield made._replace(id=made.id or f"{split}/{line - 1}")
        for split, count in left_out.items():
            message = f"{self._where}: {count:,} texts of the split {split!r} have no label and are left out"
            self.findings.append(Finding("ignored", message, [split]))
        self.findings += self._describe()

    def _name_class(self, value: Any, classes: list[str], line: int) -> str:
        if value is None or value == -1:  # the sign for none
            return ""
        if isinstance(value, int) and 0 <= value < len(classes):
            return classes[value]
        raise InputError(
            f"{self._where}, row {line}: label {value!r} is none of its {len(classes)} classes: correct it"
        )

    # --- files

    def _list_files(self) -> list[tuple[str, Path, dict[str, Any]]]:
        """Return the split, the path and the features of each file; no features where the file records them itself."""
        files = [(find_split(name), name, file, features) for name, file, features in self._list_named()]
        is_named = any(split is not None for split, *_ in files)  # else all of it is for training
        for split, name, *_ in files:
            if split == UNCLEAR or (split is None and is_named):
                raise InputError(
                    f"{self._where} has the split {name!r}, which is none of train, validation, test and unlabeled: "
                    "rename or remove it"
                )
        return [(split or "train", file, features) for split, _, file, features in files]

    def _list_named(self) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        """Yield the name of the split, the path and the features of each file."""
        if (self._path / _DICT).is_file():
            splits = _read_json(self._path / _DICT, self._where).get("splits")
            if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
                raise InputError(f"{self._where}: {_DICT} lists no splits: save it again")
            for name in splits:
                if Path(name).name != name:
                    raise InputError(f"{self._where}: {_DICT} names the split {name!r}, which is a path: save it again")
                yield from self._list_arrow(self._path / name, name)
        elif (self._path / _STATE).is_file():
            yield from self._list_arrow(self._path, "")
        else:
            for file in _list_parquet(self._path):
                name = file.stem.split("-")[0] if file.parent == self._path or file.parent.name == "data" else ""
                yield name or file.parent.name, file, {}

    def _list_arrow(self, folder: Path, name: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        state = _read_json(folder / _STATE, self._where)
        if state.get("_indices_data_files"):
            raise InputError(
                f"{self._where} has an order of its rows beside them: call flatten_indices() and save again"
            )
        files = state.get("_data_files")
        listed = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
        names = [str(file.get("filename") or "/") for file in listed]
        if not names or any(Path(one).name != one for one in names):
            raise InputError(f"{self._where}: {_STATE} lists no files: save it again")
        features = _read_json(folder / _INFO, self._where).get("features")
        split = name or str(state.get("_split") or "train")
        for one in names:
            yield split, folder / one, features if isinstance(features, dict) else {}


class _Opened:
    """An Arrow or Parquet file that is being read."""

    def __init__(self, file: Path, where: str) -> None:
        self._file, self._where = file, where

    def __enter__(self) -> "_Opened":
        try:
            import pyarrow as pa
            from pyarrow import ipc, parquet
        except ImportError as error:
            raise InputError(
                f"{self._where} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
            ) from error
        try:
            if self._file.suffix.lower() == ".parquet":
                self._table: Any = parquet.ParquetFile(self._file)
                schema = self._table.schema_arrow
            else:
                self._source = pa.memory_map(str(self._file))
                self._table = ipc.open_stream(self._source)
                schema = self._table.schema
        except (OSError, ValueError) as error:
            raise InputError(f"{self._where}: {self._file.name} cannot be read ({error}): save it again") from error
        self.schema, self.names = schema, list[str](schema.names)
        recorded = (schema.metadata or {}).get(b"huggingface")
        self.features = _parse_features(recorded)
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows with some columns."""
        try:
            if self._file.suffix.lower() == ".parquet":
                for batch in self._table.iter_batches(4096, columns=columns):
                    yield from batch.to_pylist()
            else:
                for batch in self._table:
                    yield from batch.select(columns).to_pylist()
        except (OSError, ValueError) as error:
            raise InputError(f"{self._where}: {self._file.name} cannot be read ({error}): save it again") from error


def _list_parquet(path: Path) -> list[Path]:
    return sorted(file for pattern in (_PARQUET, f"*/{_PARQUET}") for file in path.glob(pattern))


def _read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {file.name} cannot be read ({error}): save it again") from error
    return content if isinstance(content, dict) else {}


def _parse_features(recorded: bytes | None) -> dict[str, Any]:
    """Return the features that the schema of a file records, or nothing."""
    try:
        features = json.loads(recorded or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _read_classes(feature: Any) -> list[str]:
    """Return the names of a feature of classes; nothing for others."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return []
    names = feature.get("names")
    return [str(name) for name in names] if isinstance(names, list) else []
