"""Find the files of one kind below a folder, and count all files that are ignored."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from sft_lightning.data.bad_examples import format_path, show_path
from sft_lightning.data.issues import Finding
from sft_lightning.utils.errors import InputError

_FolderId = tuple[int, int]  # device and inode of a folder
# Folders that file servers, archivers and operating systems create: thumbnails, deleted files, metadata.
_LITTER = {
    "@eadir", "@__thumb", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "#recycle", "#snapshot", "__macosx",
    "__pycache__", "$recycle.bin", "system volume information", "lost+found", "found.000", "network trash folder",
    "temporary items", "thevolumesettingsfolder",
}  # fmt: skip
_FEW = 5  # kinds that a message lists


@dataclass(frozen=True)
class FileKind:
    """Kind of the files that hold the examples of a modality.

    Attributes:
        noun: Word for one example.
        phrase: The word with its article, such as "a file".
        extensions: Extensions of files that are read, and refused if they are broken.
        closed: Extensions of files of the kind that cannot be read.
        remedy: What to do about those.
        remedies: What to do about some of them instead, by their extension.
        has_content: Function that says whether a file without one of the extensions begins like one of them.
    """

    noun: str
    phrase: str
    extensions: tuple[str, ...]
    closed: tuple[str, ...]
    remedy: str
    has_content: Callable[[str], bool]
    remedies: Mapping[str, str] = field(default_factory=dict)

    @property
    def plural(self) -> str:
        """Word for several examples."""
        return f"{self.noun}s"

    def is_named(self, name: str) -> bool:
        """Return whether a file has one of the extensions.

        Args:
            name: Name of the file.
        """
        return name.lower().endswith(self.extensions)


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden or belongs to the system.

    Args:
        name: Name of the folder.
    """
    return name.startswith(".") or name.casefold() in _LITTER


@dataclass
class IgnoredFiles:
    """Files and folders that a listing ignored.

    Attributes:
        kind: Kind of the files that were listed.
        kinds: Number of files by extension.
        folders: Number of hidden and system folders by name.
        hidden: Hidden files of the kind, the first few by name.
        hidden_count: Number of all hidden files of the kind.
    """

    kind: FileKind
    kinds: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    hidden_count: int = 0

    def add_file(self, name: str) -> None:
        """Count an ignored file.

        Args:
            name: Name of the file.
        """
        if not name.startswith("."):
            closed = [kind for kind in self.kind.remedies if name.lower().endswith(kind)]
            extension = max(closed, key=len, default=os.path.splitext(name)[1].lower())
            if closed:
                self.kinds[extension] += 1
                return
            self.kinds[extension if re.fullmatch(r"\.\w{1,12}", extension) else ""] += 1
        elif self.kind.is_named(name) and not name.startswith("._"):  # a Mac keeps metadata of cat.png in ._cat.png
            self.hidden_count += 1
            self.hidden = [*self.hidden, show_path(name)][:_FEW]

    def add_folder(self, name: str) -> None:
        """Count a hidden or system folder, whose content is not examined.

        Args:
            name: Name of the folder.
        """
        self.folders[show_path(name)] += 1

    def merge(self, other: "IgnoredFiles") -> None:
        """Add the counts of another listing.

        Args:
            other: Counts of the other listing.
        """
        self.kinds += other.kinds
        self.folders += other.folders
        self.hidden = [*self.hidden, *other.hidden][:_FEW]
        self.hidden_count += other.hidden_count

    def describe(self, folder: str) -> list[Finding]:
        """Return one finding for each reason to ignore files, or nothing where all were read.

        Args:
            folder: Folder that was listed.
        """
        where = f"in {show_path(folder)!r}"
        findings = []
        closed = Counter({kind: n for kind, n in self.kinds.items() if kind in self.kind.closed})
        remedies = "; ".join(dict.fromkeys(self.kind.remedies.get(kind, self.kind.remedy) for kind in sorted(closed)))
        for kinds, what, remedy in (
            (closed, "of a format that cannot be read", f"; {remedies}"),
            (self.kinds - closed, f"that are not {self.kind.plural}", ""),
        ):
            if count := kinds.total():
                files = f"1 file {where} {what.replace(f'are not {self.kind.plural}', f'is not {self.kind.phrase}')}"
                files = f"{count:,} files {where} {what}" if count > 1 else files
                message = f"ignored {files}: {_format_counts(kinds)}{remedy}"
                findings.append(Finding("ignored", message, [kind for kind in sorted(kinds) if kind]))
        if self.hidden_count:
            noun = self.kind.noun if self.hidden_count == 1 else self.kind.plural
            more = ", ..." if self.hidden_count > len(self.hidden) else ""
            names = f"{', '.join(self.hidden)}{more}"
            message = f"ignored {self.hidden_count:,} hidden {noun} {where}: {names}; rename them to use them"
            findings.append(Finding("ignored", message, self.hidden))
        if count := self.folders.total():
            folders = "1 hidden or system folder" if count == 1 else f"{count:,} hidden or system folders"
            message = f"ignored {folders} {where}: {_format_counts(self.folders)}"
            findings.append(Finding("ignored", message, sorted(self.folders)))
        return findings


def _format_counts(counts: Counter[str]) -> str:
    """Format counts by name, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {name or 'without an extension'}" for name, count in ordered[:_FEW]]
    rest = sum(count for _, count in ordered[_FEW:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def find_files(
    folder: str, kind: FileKind, max_sorted: int | None = None, ignored: IgnoredFiles | None = None
) -> Iterator[tuple[str, str]]:
    """Yield all files of a kind below a folder, by extension or, without a known extension, by content.

    Hidden files and system folders are ignored and counted. A folder that is named like such a file and holds none,
    and a folder that cannot be listed, are yielded like files, so that reading them reports an error. A link back to a
    folder above it is not followed.

    Args:
        folder: Path of the folder.
        kind: Kind of the files.
        max_sorted: Number of entries of a folder that are sorted by name; the rest come in the order of the system.
            None sorts all.
        ignored: Counts of ignored files, which are added to.

    Yields:
        Name relative to the folder, as text, and path of a file.

    Raises:
        InputError: The folder itself cannot be listed.
    """
    try:
        yield from _walk(folder, "", frozenset(), max_sorted, IgnoredFiles(kind) if ignored is None else ignored)
    except OSError as error:
        raise InputError(
            f"folder {format_path(folder)!r} cannot be listed ({error.strerror}): fix its permissions, or leave it out"
        ) from error


def _walk(
    folder: str, prefix: str, above: frozenset[_FolderId], max_sorted: int | None, ignored: IgnoredFiles
) -> Iterator[tuple[str, str]]:
    here = os.stat(folder)
    folder_id = here.st_dev, here.st_ino
    if folder_id in above:
        return
    with os.scandir(folder) as entries:
        for entry in _sort_first(entries, max_sorted):
            is_inside = is_folder(entry)
            if is_system_folder(entry.name):
                (ignored.add_folder if is_inside else ignored.add_file)(entry.name)
                continue
            name = prefix + format_path(entry.name)
            is_listed = ignored.kind.is_named(entry.name)
            if is_inside:
                try:
                    for item in _walk(entry.path, f"{name}/", above | {folder_id}, max_sorted, ignored):
                        is_listed = False
                        yield item
                except OSError:
                    is_listed = True
            elif not is_listed and not (is_listed := ignored.kind.has_content(entry.path)):
                ignored.add_file(entry.name)
            if is_listed:
                yield name, entry.path


def _sort_first(entries: Iterator[os.DirEntry[str]], max_sorted: int | None) -> Iterator[os.DirEntry[str]]:
    yield from sorted(islice(entries, max_sorted), key=lambda entry: entry.name)
    yield from entries


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one.

    Args:
        entry: Entry of a folder.
    """
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
