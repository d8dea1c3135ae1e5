"""Sources of recordings: class folders, tables, and lists of files to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from sft_lightning.data.audio.decoding import inspect_header
from sft_lightning.data.audio.storage import Recordings
from sft_lightning.data.bad_examples import UNREADABLE, describe_read_error, format_path, show_path
from sft_lightning.data.class_folders import ClassFolders
from sft_lightning.data.column_names import KNOWN
from sft_lightning.data.label_columns import LabelColumns
from sft_lightning.data.listed_files import FileKind, IgnoredFiles, find_files
from sft_lightning.data.manifest import ManifestSource
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.table_paths import TableFolders
from sft_lightning.data.table_rows import TableRows
from sft_lightning.utils.errors import InputError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
EXTENSIONS = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64",
)  # fmt: skip
# Formats of sound that libsndfile does not read.
CLOSED = (".m4a", ".aac", ".wma", ".mp4", ".webm", ".mka", ".amr", ".ape", ".wv", ".mpc", ".ra", ".ac3", ".dts", ".mid")
_SIGNATURES = (b"fLaC", b"OggS", b"ID3")


def _has_sound(path: str) -> bool:
    """Return whether a file without a known extension begins like a recording."""
    if Path(path).suffix:
        return False
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or (head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE")


RECORDINGS = FileKind("recording", "a recording", EXTENSIONS, CLOSED, "convert them to FLAC or WAV", _has_sound)


class RecordingFolders(ClassFolders):
    """Class folders of recordings, with or without folders of splits."""

    kind: ClassVar[FileKind] = RECORDINGS
    examples: ClassVar[str] = (
        "CLASS/recording.wav, train/CLASS/recording.wav or only recordings (.wav, .flac, .ogg, .mp3, ...)"
    )

    def __init__(self, path: Path, rate: int, cache: Path | None, listed_classes: Sequence[str] = ()) -> None:
        """List the classes and their files.

        Args:
            path: Path of the folder.
            rate: Sample rate in Hz to which recordings are converted.
            cache: Folder of decoded recordings, or None.
            listed_classes: Class names that the user listed, which may look alike.

        Raises:
            InputError: The folder cannot be read as class folders.
        """
        self._rate, self._cache = rate, cache
        super().__init__(path, listed_classes)

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> Recordings:
        """Return the files of one split."""
        return Recordings(paths, ids, self._rate, self._cache)


class RecordingTable(ManifestSource):
    """Recordings listed in a table, with `path,label[,split][,group][,id]`."""

    known: ClassVar[tuple[str, ...]] = (*KNOWN, "id")

    def __init__(
        self,
        path: Path,
        rate: int,
        cache: Path | None,
        root: str = "data",
        skip: bool = False,
        listed_classes: Sequence[str] = (),
        needs_labels: bool = True,
        separator: str | None = None,
        label_columns: LabelColumns | None = None,
    ) -> None:
        """Read the table and check every line.

        Args:
            path: Path of the table.
            rate: Sample rate in Hz to which recordings are converted.
            cache: Folder of decoded recordings, or None.
            root: Second folder that the files may be in.
            skip: Whether to keep lines whose file is missing.
            listed_classes: Class names that the user listed, which are not checked.
            needs_labels: Whether to refuse a table without any label.
            separator: Separator of several classes in a label; None for one class each.
            label_columns: Columns of 0 and 1 in place of the column `label`, each a class.

        Raises:
            InputError: The table cannot be read, or what it says is contradictory.
        """
        self._rate, self._cache = rate, cache
        super().__init__(path, root, skip, listed_classes, needs_labels, separator, label_columns)

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> Recordings:
        """Return the files of one split."""
        return Recordings(paths, ids, self._rate, self._cache)


def open_recordings(
    name: str,
    rate: int,
    cache: Path | None,
    root: str = "data",
    skip: bool = False,
    listed_classes: Sequence[str] = (),
    needs_labels: bool = True,
    setting: str = "source",
    separator: str | None = None,
    label_columns: LabelColumns | None = None,
) -> Source:
    """Open a source of recordings, whose kind follows from its name.

    Args:
        name: Path of a folder or table.
        rate: Sample rate in Hz to which recordings are converted.
        cache: Folder of decoded recordings, or None.
        root: Second folder that the files of a table may be in.
        skip: Whether files that a table lists may be missing.
        listed_classes: Class names that the user listed, which are not checked.
        needs_labels: Whether to refuse a table without any label.
        setting: Name of the setting, for messages.
        separator: Separator of several classes in a label of a table; None for one class each.
        label_columns: Columns of 0 and 1 of a table in place of the column `label`, each a class.

    Raises:
        InputError: The source does not exist, or cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        return RecordingFolders(path, rate, cache, listed_classes)
    if path.suffix.lower() in TABLES:
        return RecordingTable(path, rate, cache, root, skip, listed_classes, needs_labels, separator, label_columns)
    what = "is a single file" if path.is_file() else "does not exist"
    raise InputError(
        f"{setting} {name!r} {what}: give a folder of recordings, or a table of them that ends with {', '.join(TABLES)}"
    )


def list_predicted(name: str, rate: int, root: str = "data", skip: bool = False) -> tuple[Examples, list[str]]:
    """Return the recordings to predict: those below a folder, of a table, or a single one.

    Args:
        name: Path as the user wrote it.
        rate: Sample rate in Hz to which recordings are converted.
        root: Second folder that the files of a table may be in.
        skip: Whether files that a table lists may be missing.

    Returns:
        Recordings without labels, and findings about ignored files.

    Raises:
        InputError: There are none.
    """
    path, messages = Path(name), list[str]()
    if path.is_dir():
        ignored = IgnoredFiles(RECORDINGS)
        files = [(inner, Path(file)) for inner, file in find_files(name, RECORDINGS, ignored=ignored)]
        messages = [*map(str, ignored.describe(name))]
    elif path.suffix.lower() in TABLES and path.is_file():
        files = _list_table(path, root, skip)
    elif path.is_file():
        try:
            inspect_header(path, rate)
        except UNREADABLE as error:
            raise InputError(
                f"predict_source '{show_path(path)}' cannot be read as a recording ({describe_read_error(error)}): "
                "give a recording, a folder, or a table with a column 'path'"
            ) from error
        files = [(format_path(path.name), path)]
    else:
        raise InputError(f"predict_source {name!r} does not exist: give a recording, a folder or a table of them")
    if not files:
        raise InputError("; ".join([f"predict_source {name!r} holds no recording: give one with some", *messages]))
    ids = [inner for inner, _ in files]
    storage = Recordings([file for _, file in files], ids, rate)
    return Examples(storage, ids, torch.full((len(ids),), -1)), messages


def _list_table(path: Path, root: str, skip: bool) -> list[tuple[str, Path]]:
    folders, files = TableFolders(path, root), []
    for line, row in TableRows(path, ("path",), (*KNOWN, "id")):
        if not row["path"]:
            raise InputError(f"manifest {str(path)!r}, line {line}: the path is blank")
        file, status = folders.find(line, row["path"])
        if status is None and not skip:
            raise InputError(f"{folders.explain(line, row['path'])[1]}: correct it, or set on_bad_recording: skip")
        files.append((row["id"] or row["path"], Path(file)))
    return files
