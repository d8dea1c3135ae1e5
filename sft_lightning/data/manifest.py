"""Examples listed in a table: CSV or Parquet with the columns `path,label[,split][,group]`."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from sft_lightning.data.class_names import list_classes, sort_classes
from sft_lightning.data.column_names import KNOWN
from sft_lightning.data.file_groups import describe_divided, fill_groups
from sft_lightning.data.frames import describe_frames, list_frames, name_frame, split_name, split_path
from sft_lightning.data.issues import Finding, report_fault
from sft_lightning.data.label_checks import check_class_names, check_groups, check_missing_labels
from sft_lightning.data.label_columns import LabelColumns
from sft_lightning.data.placement_checks import Placed, refuse_straddling, refuse_untrained
from sft_lightning.data.source import SPLITS, Examples, Source, split_of_name
from sft_lightning.data.storage import Storage
from sft_lightning.data.table_paths import TableFolders, is_same_spelling
from sft_lightning.data.table_rows import TableRows
from sft_lightning.utils.errors import InputError, did_you_mean


class ManifestSource(Source):
    """Table with the columns `path,label[,split][,group]`; a blank label means unlabeled.

    Paths are relative to the table's folder or to `root` and must stay inside one of them. `split` is train, val, test,
    unlabeled, a synonym of one of these, or blank (train).

    Attributes:
        known: Names of columns that are read; with `id` among them, examples have its names in place of their paths.
        label_column: Name of the column with the labels.
        others_needed: Names of required columns other than the path and the label.
    """

    known: ClassVar[tuple[str, ...]] = KNOWN
    label_column: ClassVar[str] = "label"
    others_needed: ClassVar[tuple[str, ...]] = ()
    noun: ClassVar[str] = "an example"

    def __init__(
        self, path: Path, root: str = "data", skip: bool = False, listed_classes: Sequence[str] = (),
        needs_labels: bool = True, separator: str | None = None, label_columns: LabelColumns | None = None,
    ) -> None:  # fmt: skip
        """Read the table and check every line.

        Args:
            path: Path of a `.csv` (UTF-8) or `.parquet` file (extra `parquet`).
            root: Second folder that the files may be in.
            skip: Whether to keep lines whose file is missing, which are left out when the examples are read.
            listed_classes: Class names that the user listed, which are not checked.
            needs_labels: Whether to refuse a table without any label.
            separator: Separator of several classes in a label, which `LabelSetSource` splits; None for one class each.
            label_columns: Columns of 0 and 1 in place of the column `label`, each a class.

        Raises:
            InputError: A path leads out of both folders, a column, file or label is missing, or two lines contradict
                each other; the message names the line.
        """
        self.path, self._skip, self._separator = path, skip, separator
        self.name = str(path)
        self._folders = TableFolders(path, root, has_frames=True)
        self._links: list[str] = []
        if not path.is_file():
            raise InputError(f"manifest {self.name!r} does not exist: give the path of a .csv or .parquet file")
        needed = ("path", self.label_column, *self.others_needed)
        rows = TableRows(path, needed, self.known, label_columns=label_columns, needs_labels=needs_labels)
        checked = [self._check_row(line, row) for line, row in rows]
        counts = self.count_frames([Path(row["file"]) for row in checked])
        self._rows = self._deduplicate(self._list_frames(checked, counts))
        if not self._rows:
            raise InputError(f"manifest {self.name!r} has no line below its header: list one example per line")
        frames = describe_frames(self.name, counts, self.noun)
        self.messages = [*rows.messages, *frames, *self._describe_links(), *self._check_names(listed_classes)]
        self._refuse_repeated_ids()
        found = self.find_groups([Path(row["file"]) for row in self._rows]) or [""] * len(self._rows)
        own = [group or row.get("of_file", "") for row, group in zip(self._rows, found, strict=True)]
        given = [row["group"] for row in self._rows]
        self.messages += describe_divided(given, own)
        for row, group in zip(self._rows, fill_groups(given, own), strict=True):
            row["group"] = group
        refuse_untrained(f"manifest {self.name!r}", self._placed(), self._separator)
        refuse_straddling(f"manifest {self.name!r}", self._placed())
        labels = sort_classes({row["label"] for row in self._rows if row["label"]})
        if not labels and needs_labels:
            raise InputError(
                f"manifest {self.name!r} has no labels: fill the column {self.label_column!r} for some lines, or "
                "give the folder itself to train without labels"
            )
        self.class_names, self.column_classes = labels, rows.column_classes

    def _check_row(self, line: int, row: dict[str, str]) -> dict[str, str]:
        where = f"manifest {self.name!r}, line {line}"
        row["label"] = row.pop(self.label_column)
        if not row["path"]:
            raise InputError(f"{where}: the path is blank")
        file, status = self._folders.find(line, row["path"])
        value = row["split"]
        split = split_of_name(value) if value else "train" if row["label"] else "unlabeled"
        if split is None:
            raise InputError(
                f"{where}: split {value!r} is none of {', '.join(SPLITS)} or blank{did_you_mean(value, SPLITS)}"
            )
        row["split"] = split
        if status is None and not self._skip:
            what, sentence = self._folders.explain(line, row["path"])
            report_fault("lines without a file", split, row["path"], f"{what}, line {line}", sentence)
        if status is not None and "\\" in row["path"] and not file.endswith(row["path"]):
            row["path"] = row["path"].replace("\\", "/")
        row["path"] = Path(row["path"]).as_posix()  # ./a.png is a.png
        if not row["label"] and split in ("val", "test"):
            raise InputError(
                f"{where}: split {value!r} needs a {self.label_column}; leave the split blank for unlabeled"
            )
        number = split_path(file)[1]
        inode = "" if status is None else f"{status.st_dev} {status.st_ino}{'' if number is None else f' {number}'}"
        named = {} if number is None else {"of_file": split_name(row["path"])[0]}
        return {**row, "line": str(line), "file": file, "inode": inode, **named}

    def _list_frames(self, rows: list[dict[str, str]], counts: list[int]) -> list[dict[str, str]]:
        """Return a row for each frame of files that hold several."""
        made = []
        for row, count in zip(rows, counts, strict=True):
            if count == 1:
                made.append(row)
                continue
            self.check_frames(row, count)
            for number, frame in enumerate(list_frames(row["file"], count), 1):
                own = {key: name_frame(row[key], number) for key in ("path", "id") if row.get(key)}
                made.append({**row, **own, "file": frame, "inode": f"{row['inode']} {number}", "of_file": _get_id(row)})
        return made

    def check_frames(self, row: Mapping[str, str], count: int) -> None:
        """Refuse a line that says of a file what can be true of a frame alone; by default nothing is.

        Args:
            row: Columns of the line.
            count: Number of frames of its file.

        Raises:
            InputError: The line has to name a frame.
        """

    def refuse_frames(self, row: Mapping[str, str], count: int, what: str) -> None:
        """Refuse a line that names a file of several frames in place of a frame.

        Args:
            row: Columns of the line.
            count: Number of frames of its file.
            what: What belongs to a frame alone.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"manifest {self.name!r}, line {row['line']}: {row['path']!r} holds {count:,} frames, and {what} belongs "
            f"to one of them: give a line to each, as {name_frame(row['path'], 1)!r}"
        )

    def _deduplicate(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the rows with each file once, however its path is spelled.

        Another link to the same file counts as another file, and is remembered for `_describe_links`.
        """
        first: dict[str, dict[str, str]] = {}
        by_inode: dict[str, dict[str, str]] = {}
        for row in rows:
            twin = first.setdefault(os.path.abspath(row["file"]), row)
            other = by_inode.setdefault(row["inode"], row) if row["inode"] else row
            if twin is row and other is not row:
                if is_same_spelling(row["file"], other["file"]):
                    twin = first[os.path.abspath(row["file"])] = other
                elif row["label"] and other["label"] and row["label"] != other["label"]:
                    raise InputError(
                        f"manifest {self.name!r}, line {row['line']}: {row['path']!r} is the file of line "
                        f"{other['line']} by another name, with the label {row['label']!r} here and {other['label']!r} "
                        "there: correct one of them"
                    )
                else:
                    self._links.append(f"line {row['line']} and line {other['line']}")
            if twin is not row:
                same = "" if row["path"] == twin["path"] else f", as {twin['path']!r}"
                sentence = (
                    f"manifest {self.name!r}, line {row['line']}: {row['path']!r} is already on line {twin['line']}"
                    f"{same}; list each example once"
                )
                detail = f"line {row['line']} repeats line {twin['line']}"
                report_fault("lines that name an example again", row["split"], row["path"], detail, sentence)
        return list({id(row): row for row in first.values()}.values())

    def _describe_links(self) -> Iterable[Finding]:
        if self._links:
            count = "1 line names" if len(self._links) == 1 else f"{len(self._links):,} lines name"
            message = (
                f"manifest {self.name!r}: {count} a file that another line names by another link ({self._links[0]})"
            )
            yield Finding("duplicate", message, self._links)

    def _refuse_repeated_ids(self) -> None:
        first: dict[str, str] = {}
        for row in self._rows if "id" in self.known else ():
            if (before := first.setdefault(_get_id(row), row["line"])) != row["line"]:
                raise InputError(
                    f"manifest {self.name!r}, line {row['line']}: the id {_get_id(row)!r} is on line {before}, too: "
                    "give each line its own"
                )

    def _check_names(self, listed_classes: Sequence[str]) -> list[Finding]:
        """Check for labels and groups that look alike, or that stand for a missing value."""
        where = f"manifest {self.name!r}"
        listed = [(name, row["line"]) for row in self._rows for name in list_classes(row["label"], self._separator)]
        places = {name: f"line {line}" for name, line in reversed(listed)}
        labels = Counter(name for name, _ in listed)
        findings = [
            *check_missing_labels(where, labels, listed_classes, places),
            *check_class_names(where, labels, listed_classes, places),
        ]
        places = {row["group"]: f"line {row['line']}" for row in reversed(self._rows)}
        return [*findings, *check_groups(where, Counter(row["group"] for row in self._rows if row["group"]), places)]

    def _placed(self) -> list[Placed]:
        rows = self._rows
        return [Placed(f"line {row['line']}", row["path"], row["label"], row["split"], row["group"]) for row in rows]

    @abstractmethod
    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> Storage:
        """Return the files of one split without reading them.

        Args:
            paths: Paths of the files.
            ids: Names of the files, as the table has them.
        """

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no example is read."""
        number = {name: i for i, name in enumerate(self.class_names)}
        grouped = any(row["group"] for row in self._rows)
        parts = {}
        for split in SPLITS:
            rows = [row for row in self._rows if row["split"] == split]
            if rows:
                ids = [_get_id(row) for row in rows]
                paths = [Path(row["file"]) for row in rows]
                # Labels of lines marked `unlabeled` are kept for evaluation; training never sees them.
                labels = torch.tensor([number.get(row["label"], -1) for row in rows])
                groups = [row["group"] or _get_id(row) for row in rows] if grouped else None
                parts[split] = Examples(self.open_files(paths, ids), ids, labels, groups)
        return parts


def _get_id(row: dict[str, str]) -> str:
    return row.get("id") or row["path"]
