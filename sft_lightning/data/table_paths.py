"""Find the files that a table names: in the folder of the table or in `root`, and nowhere else."""

import os
import re
import stat
import unicodedata
from pathlib import Path

from sft_lightning.data.frames import name_frame, split_name
from sft_lightning.data.label_checks import quote_name
from sft_lightning.utils.errors import InputError

_DEFAULT_ROOT = "data"  # default of `ImageDataModule`, which may be missing
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class TableFolders:
    """Two folders that the paths of a table may be relative to, and must stay inside."""

    def __init__(self, table: Path, root: str, has_frames: bool = False) -> None:
        """Set both folders.

        Args:
            table: Path of the table.
            root: Path of the second folder; it may be missing.
            has_frames: Whether a path may name a frame of a file, as `scan.dcm#12` does.
        """
        self._has_frames = has_frames
        self._table, self._root = table, root
        self._folders = [str(table.parent), *([root] if os.path.isdir(root) else [])]

    def find(self, line: int, name: str) -> tuple[str, os.stat_result | None]:
        """Return the path of a file or of a frame of one and its status, which is None if the file is missing.

        Backslashes separate folders unless a file has them in its name.

        Args:
            line: Line of the table, for messages.
            name: Path as written in the table.

        Raises:
            InputError: The path leads out of both folders, or to a different file in each.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            matches: dict[str, os.stat_result] = {}
            for path in dict.fromkeys(os.path.join(folder, spelling) for folder in self._folders):
                status = _stat(path) if is_inside(path, self._table, self._root) else None
                if status is not None and not any(os.path.samestat(status, other) for other in matches.values()):
                    matches[path] = status
            if len(matches) > 1:
                raise InputError(
                    f"{self._locate(line)}: path {name!r} is a file in {str(self._table.parent)!r} and another one in "
                    f"root {self._root!r}: give the full path of one of them, or another root"
                )
            if matches:
                return next(iter(matches.items()))
        check_inside(self._table, line, name, self._root)
        file, number = split_name(name) if self._has_frames else (name, None)
        if number is not None:
            path, status = self.find(line, file)
            return name_frame(path, number), status
        return os.path.join(self._table.parent, name), None

    def explain(self, line: int, name: str) -> tuple[str, str]:
        """Return why a path is not a file, in a few words and as an error message.

        Args:
            line: Line of the table.
            name: Path as written in the table.
        """
        where, path = self._locate(line), os.path.join(self._table.parent, name)
        if _URL.match(name):
            return "a URL", f"{where}: path {name!r} is a URL: download the file, and give its path"
        if os.path.isdir(path):
            return "a folder", f"{where}: path {name!r} is a folder: list each example on a line of its own"
        if re.search(r"[*?]|\[.+\]", name):
            return "a pattern", f"{where}: path {name!r} is a pattern: list each example on a line of its own"
        what = "a broken link" if os.path.islink(path) else "missing"
        places = " or ".join(map(repr, dict.fromkeys(self._folders)))
        root = (
            ""
            if self._root == _DEFAULT_ROOT or os.path.isdir(self._root)
            else f" (root {self._root!r} is not a folder)"
        )
        return what, f"{where}: file {name!r} does not exist below {places}{root}{self._suggest_file(name)}"

    def _suggest_file(self, name: str) -> str:
        """Suggest a file of nearly the same name: another extension or case, composed letters, or spaces."""
        for folder in self._folders:
            parent, last = os.path.split(os.path.join(folder, name.replace("\\", "/")))
            try:
                entries = sorted(os.listdir(parent))
            except (OSError, ValueError):
                continue
            for wanted in (_normalize(last), _normalize(os.path.splitext(last)[0])):
                for entry in entries:
                    if wanted and wanted in (_normalize(entry), _normalize(os.path.splitext(entry)[0])):
                        return (
                            f", but {quote_name(os.path.join(os.path.dirname(name), entry))} does: write it like this"
                        )
        return ""

    def _locate(self, line: int) -> str:
        return f"manifest {str(self._table)!r}, line {line}"


def check_inside(table: Path, line: int, name: str, root: str) -> None:
    """Refuse a path that leads out of the table's folder and of `root`.

    Paths are compared as written. Links inside these folders are followed wherever they lead: whoever can put a link
    there could put the file there, too, and data sets are often linked.

    Args:
        table: Path of the table.
        line: Line of the table, for the message.
        name: Path as written in the table.
        root: Path of the second folder.

    Raises:
        InputError: The path leads out of both folders.
    """
    if not is_inside(os.path.join(table.parent, name), table, root):
        raise InputError(
            f"manifest {str(table)!r}, line {line}: path {name!r} leads out of the folder {str(table.parent)!r}: "
            "correct it, or name the folder of its files by root"
        )


def is_inside(path: str, table: Path, root: str) -> bool:
    """Return whether a path, as written, leads into the folder of a table or into `root`.

    Args:
        path: Path to check.
        table: Path of the table.
        root: Path of the second folder.
    """
    file = os.path.abspath(path)
    return any(file.startswith(os.path.join(os.path.abspath(folder), "")) for folder in (table.parent, root))


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def is_same_spelling(one: str, other: str) -> bool:
    """Return whether two paths of one file differ only in case or Unicode composition, which some file systems ignore.

    Args:
        one: Path of the file.
        other: Another path of the same file.
    """
    a, b = (unicodedata.normalize("NFC", os.path.abspath(path)).casefold() for path in (one, other))
    return a == b


def _stat(path: str) -> os.stat_result | None:
    """Return the status of a regular file, or None for anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: not a valid path, such as one with a NUL byte
        return None
    return status if stat.S_ISREG(status.st_mode) else None
