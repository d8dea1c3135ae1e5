"""Groups of files: those of a table beside them, what a file says it belongs to, or a file of several frames."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.frames import split_name, split_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.label_checks import check_groups
from sft_lightning.data.placement_checks import Placed, refuse_straddling
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.table_rows import TableRows
from sft_lightning.utils.errors import InputError, did_you_mean

GROUPS = "groups.csv"  # with the columns path, relative to its folder, and group


class _Row(NamedTuple):
    line: int
    group: str


def fill_groups(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the group of each example: the given one, that of others of its patient or file, or that itself.

    Args:
        given: Group of each example that the user names, or "".
        own: What each example says it belongs to, such as its patient or its file of frames, or "".
    """
    known: dict[str, str] = {}
    for group, name in zip(given, own, strict=True):
        if group and name:
            known.setdefault(name, group)
    return [group or known.get(name, name) for group, name in zip(given, own, strict=True)]


def describe_divided(given: Sequence[str], own: Sequence[str]) -> list[Finding]:
    """Return a finding about patients and files of frames that the groups of the user divide.

    Args:
        given: Group of each example that the user names, or "".
        own: What each example says it belongs to, or "".
    """
    found: dict[str, set[str]] = {}
    for group, name in zip(fill_groups(given, own), own, strict=True):
        if name:
            found.setdefault(name, set()).add(group)
    divided = [sorted(groups) for groups in found.values() if len(groups) > 1]
    if not divided:
        return []
    what = (
        "1 patient or file of frames is" if len(divided) == 1 else f"{len(divided):,} patients or files of frames are"
    )
    message = (
        f"{what} in several of the named groups, such as {divided[0][0]!r} and {divided[0][1]!r}, which different "
        "splits may get: name one group for each patient"
    )
    return [Finding("group_name", message, [group for groups in divided for group in groups])]


def group_files(source: Source, folder: Path, parts: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return splits of files with their groups.

    They are those of `groups.csv`, or else what a file says it belongs to, such as a patient, or a file of frames, as
    `fill_groups` joins them.

    Args:
        source: Source of the splits, which gets messages about suspicious groups.
        folder: Folder that names of examples are relative to, in which the table may lie.
        parts: Splits of files, without groups.

    Raises:
        InputError: The table cannot be read, names a file twice or one that the source lacks, or two of its groups look
            alike; or a group is in more than one of training, validation and test.
    """
    table, where = folder / GROUPS, f"'{show_path(folder / GROUPS)}'"
    rows = _read(source, table, where, parts) if table.is_file() else {}
    given, own = list[str](), list[str]()
    for part in parts.values():
        paths = part.storage.paths if isinstance(part.storage, FileStorage) else None  # or what was read from them
        found = (source.find_groups(paths) if paths else None) or [""] * len(part)
        for i, name in enumerate(part.ids):
            whole = split_name(name)[0]
            row = rows.get(name) or rows.get(whole)
            given.append("" if row is None else row.group)
            own.append(found[i] or (whole if paths and split_path(paths[i])[1] is not None else ""))
    source.messages = [*source.messages, *(one for one in describe_divided(given, own) if one not in source.messages)]
    filled = iter(fill_groups(given, own))
    made, placed = {}, list[Placed]()
    for split, part in parts.items():
        found = [next(filled) for _ in part.ids]
        placed += [Placed(name, name, "", split, group) for name, group in zip(part.ids, found, strict=True)]
        groups = [group or name for name, group in zip(part.ids, found, strict=True)] if any(found) else None
        made[split] = Examples(part.storage, part.ids, part.labels, groups)
    refuse_straddling(where if rows else f"folder '{show_path(source.name)}'", placed)
    return made


def _read(source: Source, table: Path, where: str, parts: Mapping[str, Examples]) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    names = {name for part in parts.values() for one in part.ids for name in (one, split_name(one)[0])}
    for line, cells in TableRows(table, ("path", "group"), ("path", "group")):
        name = Path(cells["path"]).as_posix()
        if name in rows:
            raise InputError(f"{where}, line {line}: {name!r} is on line {rows[name].line}, too: remove one of them")
        if name not in names:
            raise InputError(
                f"{where}, line {line}: the source has no file {name!r}{did_you_mean(name, [*names])}: correct or "
                "remove the line"
            )
        rows[name] = _Row(line, cells["group"])
    counts, lines = Counter(row.group for row in rows.values() if row.group), dict[str, str]()
    for row in rows.values():
        lines.setdefault(row.group, f"line {row.line}")
    found = check_groups(where, counts, lines)
    source.messages = [*source.messages, *(one for one in found if one not in source.messages)]
    return rows
