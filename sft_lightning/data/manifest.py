"""Pictures listed in a table: CSV or Parquet with the columns `path,label[,split][,group]`."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from sft_lightning.data.class_names import sort_classes
from sft_lightning.data.issues import STRADDLING, UNTRAINED, report_fault
from sft_lightning.data.label_checks import check_class_names, check_groups, check_missing_labels
from sft_lightning.data.source import SPLITS, Examples, Source, split_of_name
from sft_lightning.data.table_paths import TableFolders, is_same_spelling
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.vision.images import FileImages
from sft_lightning.utils.errors import InputError, did_you_mean


class ManifestSource(Source):
    """A table with the columns `path,label[,split][,group]`; a blank label means unlabeled.

    Paths are relative to the table's folder or to `root`, and lead to files in one of them. `split` is train, val,
    test, unlabeled (or another word for one of them) or blank (train).
    """

    def __init__(self, path: Path, root: str = "data", skip: bool = False, listed_classes: Sequence[str] = ()) -> None:
        """Reads the table and checks every line.

        Args:
            path: `.csv` (UTF-8) or `.parquet` (extra `parquet`).
            root: A second folder that its files may lie in.
            skip: Lines without a file are let through; whoever reads them leaves them out.
            listed_classes: Names of classes that the user listed, which need no check.

        Raises:
            InputError: A path leads elsewhere, a column, file or label is missing, or a line contradicts another one;
                the line is named.
        """
        self.path, self._skip = path, skip
        self.name = str(path)
        self._folders = TableFolders(path, root)
        self._links: list[str] = []
        if not path.is_file():
            raise InputError(f"manifest {self.name!r} does not exist: give the path of a .csv or .parquet file")
        rows = TableRows(path)
        self._rows = self._deduplicate([self._check_row(line, row) for line, row in rows])
        if not self._rows:
            raise InputError(f"manifest {self.name!r} has no line below its header: list one image per line")
        self.messages = [*rows.messages, *self._describe_links(), *self._check_names(listed_classes)]
        self._refuse_untrained()
        self._refuse_straddling()
        labels = sort_classes({row["label"] for row in self._rows if row["label"]})
        if not labels:
            raise InputError(
                f"manifest {self.name!r} has no label at all: fill the column 'label' for some lines, "
                "or give the folder itself for training without labels"
            )
        self.class_names = labels

    def _check_row(self, line: int, row: dict[str, str]) -> dict[str, str]:
        where = f"manifest {self.name!r}, line {line}"
        if not row["path"]:
            raise InputError(f"{where}: the path is blank")
        file, about = self._folders.find(line, row["path"])
        words = row["split"]
        split = split_of_name(words) if words else "train" if row["label"] else "unlabeled"
        if split is None:
            raise InputError(
                f"{where}: split {words!r} is none of {', '.join(SPLITS)} or blank{did_you_mean(words, SPLITS)}"
            )
        row["split"] = split
        if about is None and not self._skip:
            what, sentence = self._folders.explain(line, row["path"])
            report_fault("lines without a file", split, row["path"], f"{what}, line {line}", sentence)
        if about is not None and "\\" in row["path"] and not file.endswith(row["path"]):
            row["path"] = row["path"].replace("\\", "/")
        row["path"] = Path(row["path"]).as_posix()  # ./a.png is a.png
        if not row["label"] and split in ("val", "test"):
            raise InputError(f"{where}: split {words!r} needs a label; leave the split blank for unlabeled")
        place = "" if about is None else f"{about.st_dev} {about.st_ino}"
        return {**row, "line": str(line), "file": file, "place": place}

    def _deduplicate(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """The rows, each file once, however it is spelled; another link to one of them is another file, but counted."""
        first: dict[str, dict[str, str]] = {}
        by_place: dict[str, dict[str, str]] = {}
        for row in rows:
            twin = first.setdefault(os.path.abspath(row["file"]), row)
            other = by_place.setdefault(row["place"], row) if row["place"] else row
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
                    f"manifest {self.name!r}, line {row['line']}: {row['path']!r} stands on line {twin['line']} "
                    f"already{same}; list each image once"
                )
                detail = f"line {row['line']} repeats line {twin['line']}"
                report_fault("lines that name an image again", row["split"], row["path"], detail, sentence)
        return list({id(row): row for row in first.values()}.values())

    def _describe_links(self) -> Iterable[str]:
        if self._links:
            count = "1 line names" if len(self._links) == 1 else f"{len(self._links):,} lines name"
            yield f"manifest {self.name!r}: {count} a file that another line names by another link ({self._links[0]})"

    def _check_names(self, listed_classes: Sequence[str]) -> list[str]:
        """Looks at the labels and groups for what reads alike, or says that there is none."""
        where = f"manifest {self.name!r}"
        places = {row["label"]: f"line {row['line']}" for row in reversed(self._rows)}
        labels = Counter(row["label"] for row in self._rows if row["label"])
        sentences = [
            *check_missing_labels(where, labels, listed_classes, places),
            *check_class_names(where, labels, listed_classes, places),
        ]
        places = {row["group"]: f"line {row['line']}" for row in reversed(self._rows)}
        return [*sentences, *check_groups(where, Counter(row["group"] for row in self._rows if row["group"]), places)]

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
                report_fault(STRADDLING, " and ".join(found), group, f"in {told}", sentence)

    def _refuse_untrained(self) -> None:
        trained = sorted({row["label"] for row in self._rows if row["label"] and row["split"] == "train"})
        for row in self._rows if trained else []:
            if row["split"] in ("val", "test") and row["label"] not in trained:
                sentence = (
                    f"manifest {self.name!r}, line {row['line']}: no training image has the class {row['label']!r} of "
                    f"this {row['split']} image{did_you_mean(row['label'], trained)}; correct it or add training images"
                )
                report_fault(UNTRAINED, row["split"], row["path"], f"class {row['label']!r}", sentence)

    def load(self) -> dict[str, Examples]:
        """Makes the parts; no picture is read."""
        number = {name: i for i, name in enumerate(self.class_names)}
        grouped = any(row["group"] for row in self._rows)
        parts = {}
        for split in SPLITS:
            rows = [row for row in self._rows if row["split"] == split]
            if rows:
                ids = [row["path"] for row in rows]
                paths = [Path(row["file"]) for row in rows]
                # A hidden label of a line marked `unlabeled` is read: it can be measured against, never trained on.
                labels = torch.tensor([number.get(row["label"], -1) for row in rows])
                groups = [row["group"] or row["path"] for row in rows] if grouped else None
                parts[split] = Examples(FileImages(paths, ids), ids, labels, groups)
        return parts
