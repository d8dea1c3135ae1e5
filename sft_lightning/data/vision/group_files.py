"""Groups of the images of a folder, in a table beside them: what belongs together stays in one split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.label_checks import check_groups
from sft_lightning.data.placement_checks import Placed, refuse_straddling
from sft_lightning.data.source import Examples
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.utils.errors import InputError, did_you_mean

GROUPS = "groups.csv"  # with the columns path, relative to its folder, and group


class _Row(NamedTuple):
    line: int
    group: str


def add_groups(source: ImageSource, folder: Path, parts: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return examples with their groups: those of `groups.csv`, or else the patients of DICOM files.

    Args:
        source: Source of the examples, which gets messages about suspicious groups.
        folder: Folder that names of examples are relative to, in which the table may lie.
        parts: Examples of each split, as files.

    Raises:
        InputError: The table cannot be read, names an image twice or one that the source lacks, or two of its groups
            look alike; or a group is in two splits.
    """
    table, where = folder / GROUPS, f"'{show_path(folder / GROUPS)}'"
    rows = _read(table, where) if table.is_file() else {}
    names = {name for part in parts.values() for name in part.ids}
    for name, row in rows.items():
        if name not in names:
            raise InputError(
                f"{where}, line {row.line}: the source has no image {name!r}{did_you_mean(name, [*names])}: correct or "
                "remove the line"
            )
    counts, lines = Counter(row.group for row in rows.values() if row.group), dict[str, str]()
    for row in rows.values():
        lines.setdefault(row.group, f"line {row.line}")
    found = check_groups(where, counts, lines)
    source.messages = [*source.messages, *(one for one in found if one not in source.messages)]
    made, placed = {}, list[Placed]()
    for split, part in parts.items():
        assert isinstance(part.storage, FileStorage)
        patients = source.find_groups(part.storage.paths) or [""] * len(part)
        groups = [
            rows[name].group if name in rows else patient for name, patient in zip(part.ids, patients, strict=True)
        ]
        placed += [Placed(name, name, "", split, group) for name, group in zip(part.ids, groups, strict=True)]
        own = [group or name for name, group in zip(part.ids, groups, strict=True)]
        made[split] = replace(part, groups=own if any(groups) else None)
    refuse_straddling(where if rows else f"source {source.name!r}", placed)
    return made


def _read(table: Path, where: str) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for line, row in TableRows(table, ("path", "group"), ("path", "group")):
        name = Path(row["path"]).as_posix()
        if name in rows:
            raise InputError(f"{where}, line {line}: {name!r} is on line {rows[name].line}, too: remove one of them")
        rows[name] = _Row(line, row["group"])
    return rows
