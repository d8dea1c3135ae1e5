"""Table of images with boxes, one object a row: path,class,x1,y1,x2,y2[,split][,group]."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from sft_lightning.data.class_names import sort_classes
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_checks import check_class_names, check_groups
from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.source import Examples, split_of_name
from sft_lightning.data.vision.box_sources import HAS_BOXES, BoxSource, name_classes
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.images import FileImages
from sft_lightning.data.vision.objects import make_objects
from sft_lightning.utils.errors import InputError

_CORNERS = ("x1", "y1", "x2", "y2")


class BoxTable(ManifestSource, BoxSource):
    """Table with the columns path,class,x1,y1,x2,y2[,split][,group], one object a row, corners in pixels.

    A row with a blank class says that its image shows no object; where its split is `unlabeled`, it says nothing.
    """

    known: ClassVar[tuple[str, ...]] = ("path", "class", *_CORNERS, "split", "group")
    label_column: ClassVar[str] = "class"
    others_needed: ClassVar[tuple[str, ...]] = _CORNERS

    def __init__(
        self, path: Path, root: str = "data", skip: bool = False, class_names: Sequence[str] | None = None
    ) -> None:
        """Read the table and check every line.

        Args:
            path: Path of a `.csv` (UTF-8) or `.parquet` file (extra `parquet`).
            root: Second folder that the files may be in.
            skip: Whether to keep lines whose image is missing, which are left out when the examples are read.
            class_names: Names of the classes in the order of their numbers; None for those of the data, sorted.

        Raises:
            InputError: A path leads out of both folders, a file is missing, a corner is not a number, or two lines
                contradict each other; the message names the line.
        """
        self._found: dict[str, list[dict[str, str]]] = {}  # rows of the objects of each image
        super().__init__(path, root, skip, class_names or (), needs_labels=False)
        names = {row["object"] for rows in self._found.values() for row in rows}
        self.class_names = name_classes(sort_classes(names), class_names, self.name)

    def _check_row(self, line: int, row: dict[str, str]) -> dict[str, str]:
        name, where = row["class"], f"manifest {self.name!r}, line {line}"
        for corner in _CORNERS:
            if bool(row[corner]) != bool(name):
                raise InputError(
                    f"{where}: {corner} is {row[corner] or 'blank'} and the class is {name or 'blank'}: give both, or "
                    "leave both blank for an image without objects"
                )
            try:
                float(row[corner] or 0)
            except ValueError as error:
                raise InputError(f"{where}: {corner} is {row[corner]!r}: give a number of pixels") from error
        is_unlabeled = not name and split_of_name(row["split"]) == "unlabeled"
        checked = super()._check_row(line, {**row, "class": "" if is_unlabeled else HAS_BOXES})
        return {**checked, "object": name}

    def _deduplicate(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return one row for each image, and keep those of its objects."""
        first: dict[str, dict[str, str]] = {}
        for row in rows:
            key = os.path.abspath(row["file"])
            twin = first.setdefault(key, row)
            objects = self._found.setdefault(key, [])
            where = f"manifest {self.name!r}, line {row['line']}: {row['path']!r}"
            if twin is not row and not (row["object"] and twin["object"]):
                raise InputError(
                    f"{where} is on line {twin['line']}, too, and one of them has a blank class: remove that line, or "
                    "the others"
                )
            for column in ("split", "group"):
                if row[column] != twin[column]:
                    raise InputError(
                        f"{where} has the {column} {row[column] or 'blank'!r}, and {twin[column] or 'blank'!r} on line "
                        f"{twin['line']}: give all lines of an image the same"
                    )
            objects += [row] if row["object"] else []
        return super()._deduplicate([*first.values()])

    def check_frames(self, row: Mapping[str, str], count: int) -> None:
        """Refuse boxes of a file of several frames."""
        if row["object"]:
            self.refuse_frames(row, count, "a box")

    def _check_names(self, listed_classes: Sequence[str]) -> list[Finding]:
        """Check for classes and groups that look alike."""
        where, rows = f"manifest {self.name!r}", [row for found in self._found.values() for row in found]
        places = {row["object"]: f"line {row['line']}" for row in reversed(rows)}
        findings = check_class_names(where, places, listed_classes, places)
        groups = Counter(row["group"] for row in self._rows if row["group"])
        return [*findings, *check_groups(where, groups, {row["group"]: f"line {row['line']}" for row in self._rows})]

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> FileImages:
        """Return the images of one split, without boxes."""
        return FileImages(paths, ids)

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        annotated = {row["path"] for row in self._rows if row["label"]}
        parts = {}
        for split, part in super().load().items():
            assert isinstance(part.storage, FileImages)
            objects = [
                make_objects(self.path, [self._read_object(row) for row in self._found[os.path.abspath(path)]])
                if name in annotated
                else None
                for path, name in zip(part.storage.paths, part.ids, strict=True)
            ]
            stored = BoxedImages(part.storage.paths, part.storage.ids, objects, self.class_names)
            labels = torch.tensor([-1 if one is None else 0 for one in objects], dtype=torch.long)
            parts[split] = Examples(stored, part.ids, labels, part.groups)
        return parts

    def _read_object(self, row: dict[str, str]) -> tuple[int, list[float], bool]:
        return self.class_names.index(row["object"]), [float(row[corner]) for corner in _CORNERS], False
