"""Sources of texts: tables with columns by name, and folders of `.txt` files by class."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from sft_lightning.data.class_names import list_classes, sort_classes
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_checks import check_class_names, check_groups, check_missing_labels
from sft_lightning.data.label_columns import LabelColumns
from sft_lightning.data.placement_checks import Placed, refuse_straddling, refuse_untrained
from sft_lightning.data.source import SPLITS, Examples, Source, split_of_name
from sft_lightning.data.text.dataset_folder import DatasetFolder, is_dataset_folder
from sft_lightning.data.text.folders import TEXTS, TextFolders, describe_encodings, list_texts, read_texts
from sft_lightning.data.text.storage import Encoding, Text, TextStorage
from sft_lightning.data.text.tables import SUFFIXES, Columns, Row, TextTable, is_blank
from sft_lightning.utils.errors import InputError, did_you_mean

SAMPLE_NAME = "sample-texts"
SAMPLE = Path(__file__).parents[1] / "sample" / "glosses.csv"  # of WordNet, see LICENSES.md beside it


class TextSource(Source):
    """Texts with their labels, splits and groups, all in memory.

    Texts that are blank are left out and reported.

    Attributes:
        blank: Places of blank texts: lines of a table, or names of files.
    """

    def __init__(
        self,
        name: str,
        columns: Columns,
        encoding: Encoding,
        listed_classes: Sequence[str] = (),
        needs_labels: bool = True,
        separator: str | None = None,
        label_columns: LabelColumns | None = None,
        to_predict: bool = False,
    ) -> None:
        """Read a table or a folder.

        Args:
            name: `sample-texts`, or the path of a `.csv`, `.tsv`, `.jsonl` or `.parquet` file. Or the path of a folder:
                with a folder of `.txt` files for each class, which may lie in folders of splits, and texts without a
                label in `unlabeled`; or with a data set of Hugging Face, of `save_to_disk` or Parquet files.
            columns: Names of the columns of a table; those of the sample are known.
            encoding: How texts become tokens.
            listed_classes: Class names that the user listed, which are not checked.
            needs_labels: Whether to refuse a source without labels.
            separator: Separator of several classes in a label, which `LabelSetSource` splits; None for one class each.
            label_columns: Columns of 0 and 1 of a table in place of that of the labels, each a class.
            to_predict: Whether to take all texts of a folder, whatever its folders mean, or a single `.txt` file.

        Raises:
            InputError: The source cannot be read, or what it says is contradictory.
        """
        self.name, self._encoding, self._separator = name, encoding, separator
        path = SAMPLE if name == SAMPLE_NAME else Path(name)
        self._findings: list[Finding] = []
        self.blank: list[str] = []
        if path.is_dir() and is_dataset_folder(path):
            self._kind, folder = "data set", DatasetFolder(path, columns, needs_labels)
            rows, self._findings = [*folder], folder.findings
        elif path.is_dir() and columns.augmented:
            raise InputError(f"folder {name!r} has no columns, and augmented_columns names some: give a table")
        elif to_predict and (path.is_dir() or (path.is_file() and TEXTS.is_named(path.name))):
            self._kind = "folder" if path.is_dir() else "file"
            rows = self._read_predicted(path)
        elif path.is_dir():
            self._kind, rows = "folder", self._read_folder(path, listed_classes)
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                raise InputError(f"table {name!r} does not exist: give the path of a table or a folder of texts")
            columns = Columns(augmented=columns.augmented) if path == SAMPLE else columns
            self._kind, table = "table", TextTable(path, columns, needs_labels, label_columns)
            rows, self._findings = [*table], table.findings
            self.column_classes = table.column_classes
        else:
            raise InputError(
                f"source is {name!r}: give a folder of texts, a table that ends with {', '.join(SUFFIXES)}, or "
                f"{SAMPLE_NAME}{did_you_mean(name, [SAMPLE_NAME])}"
            )
        self._rows = [self._place(row) for row in self._leave_out_blank(rows)]
        if not self._rows:
            raise InputError("; ".join([f"{self._kind} {name!r} has no text", *map(str, self._findings)]))
        self._check(listed_classes)
        self.class_names = sort_classes({row.label for row in self._rows if row.label})
        if not self.class_names and needs_labels:
            where = f"the column {columns.label!r}" if label_columns is None else "label_columns"
            remedy = f"fill {where} of some lines" if self._kind != "folder" else "make a folder for each class"
            raise InputError(f"{self._kind} {name!r} has no labels: {remedy}")
        self.messages = self._findings

    # --- reading

    def _read_folder(self, root: Path, listed_classes: Sequence[str]) -> list[Row]:
        folders, rows = TextFolders(root, self._encoding, listed_classes), list[Row]()
        for split, part in folders.load().items():
            assert isinstance(part.storage, TextStorage)
            for texts, name, label in zip(part.storage.texts, part.ids, part.labels.tolist(), strict=True):
                word = folders.class_names[label] if label >= 0 else ""
                rows.append(Row(len(rows) + 1, texts, word, split if word else "", "", name))
        where = f"folder {self.name!r}"
        said = [one for one in folders.messages if isinstance(one, Finding)]
        self._findings = [*said, *describe_encodings(where, folders.others)]
        return rows

    def _read_predicted(self, path: Path) -> list[Row]:
        """Return the rows of a file, or of all files below a folder, whatever their folders mean."""
        if path.is_dir():
            paths, ids, self._findings = list_texts(path)
        else:
            paths, ids = [path], [path.name]
        others: list[str] = []
        texts = read_texts(paths, ids, others)
        self._findings += describe_encodings(f"{self._kind} {self.name!r}", others)
        return [Row(i, (text,), "", "", "", name) for i, (text, name) in enumerate(zip(texts, ids, strict=True), 1)]

    def _leave_out_blank(self, rows: Sequence[Row]) -> list[Row]:
        self.blank = [self._locate(row) for row in rows if all(map(is_blank, row.texts))]
        if self.blank:
            count = "1 text is" if len(self.blank) == 1 else f"{len(self.blank):,} texts are"
            message = f"{self._kind} {self.name!r}: {count} blank and left out ({', '.join(self.blank[:3])})"
            self._findings.append(Finding("unreadable", message, self.blank))
        return [row for row in rows if not all(map(is_blank, row.texts))]

    def _locate(self, row: Row) -> str:
        return row.id if self._kind != "table" else f"line {row.line}"

    def _place(self, row: Row) -> Row:
        """Return a row with a name and one of the four splits."""
        split = split_of_name(row.split) if row.split else "train" if row.label else "unlabeled"
        where = f"{self._kind} {self.name!r}, {self._locate(row)}"
        if split is None:
            raise InputError(
                f"{where}: split {row.split!r} is none of {', '.join(SPLITS)} or blank{did_you_mean(row.split, SPLITS)}"
            )
        if not row.label and split in ("val", "test"):
            raise InputError(f"{where}: split {row.split!r} needs a label; leave the split blank for unlabeled")
        return row._replace(split=split, id=row.id or f"line {row.line}")

    # --- checks

    def _check(self, listed_classes: Sequence[str]) -> None:
        where, rows = f"{self._kind} {self.name!r}", self._rows
        for name, count in Counter(row.id for row in rows).items():
            if count > 1:
                raise InputError(f"{where}: the id {name!r} is on {count} lines: give each line its own")
        listed = [(name, row) for row in rows for name in list_classes(row.label, self._separator)]
        places = {name: self._locate(row) for name, row in reversed(listed)}
        labels = Counter(name for name, _ in listed)
        self._findings += check_missing_labels(where, labels, listed_classes, places)
        self._findings += check_class_names(where, labels, listed_classes, places)
        places = {row.group: self._locate(row) for row in reversed(rows)}
        self._findings += check_groups(where, Counter(row.group for row in rows if row.group), places)
        placed = [Placed(self._locate(row), row.id, row.label, row.split, row.group) for row in rows]
        refuse_straddling(where, placed)
        refuse_untrained(where, placed, self._separator)

    # --- examples

    def load(self) -> dict[str, Examples]:
        """Return the texts of each split; tokens are made when they are needed."""
        number = {name: i for i, name in enumerate(self.class_names)}
        is_grouped = any(row.group for row in self._rows)
        parts = {}
        for split in SPLITS:
            rows = [row for row in self._rows if row.split == split]
            if rows:
                texts: list[Text] = [row.texts for row in rows]
                ids = [row.id for row in rows]
                labels = torch.tensor([number.get(row.label, -1) for row in rows])
                groups = [row.group or row.id for row in rows] if is_grouped else None
                augmented = [row.augmented for row in rows]
                parts[split] = Examples(TextStorage(texts, self._encoding, augmented), ids, labels, groups)
        return parts
