"""Class folders, with or without folders of splits; anything ambiguous is reported or refused."""

import os
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from sft_lightning.data.bad_examples import format_path, show_path
from sft_lightning.data.class_names import sort_classes
from sft_lightning.data.file_groups import GROUPS, group_files
from sft_lightning.data.frames import describe_frames, list_frames
from sft_lightning.data.issues import UNTRAINED, Finding, report_fault
from sft_lightning.data.label_checks import check_class_names
from sft_lightning.data.listed_files import FileKind, IgnoredFiles, find_files, is_folder, is_system_folder
from sft_lightning.data.source import SPLITS, Examples, Source, relative
from sft_lightning.data.split_names import UNCLEAR, find_split, mentions_split
from sft_lightning.data.storage import Storage
from sft_lightning.utils.errors import InputError, did_you_mean


class Entries(NamedTuple):
    """Folders, files with examples and ignored files in a folder, in the order of their names."""

    folders: list[Path]
    files: list[Path]
    ignored: IgnoredFiles


# Names of folders of a cross-validation, or of an archive in pieces.
_PIECE = re.compile(r"(fold|k|cv|split|part|piece|chunk|shard|batch|subset|set|archive|images)[\W_]*\d+", re.IGNORECASE)
_FEW = 5  # names that a message lists


class ClassFolders(Source):
    """Class folders: `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`, `unlabeled/...`, or `CLASS/...` alone.

    A folder without class folders holds only unlabeled files; one with only `val/` or `test/` has nothing to train on.
    Other spellings of the splits (`Train`, `valid`, `unlabelled`) are accepted and reported.

    Attributes:
        kind: Kind of the files.
        examples: Paths of files within a folder, as a message gives them.
    """

    kind: ClassVar[FileKind]
    examples: ClassVar[str]

    def __init__(self, path: Path, listed_classes: Sequence[str] = ()) -> None:
        """List the classes and their files.

        Args:
            path: Path of the folder.
            listed_classes: Class names that the user listed, which may look alike.

        Raises:
            InputError: The folder has no file of the kind, an empty class, a class in `val/` or `test/` that `train/`
                lacks, or a folder whose meaning is ambiguous.
        """
        self.path = path
        self.name = str(path)
        self._ignored = IgnoredFiles(self.kind)
        self._entries: dict[Path, Entries] = {}
        findings: list[Finding] = []
        folders, loose, passed = self._list_entries(path)
        if (path / GROUPS).is_file():  # which is read
            passed.kinds[Path(GROUPS).suffix] -= 1
        self._ignored.merge(passed)
        self._splits = self._find_splits(folders, findings)
        self._train = self._splits.setdefault("train", path)
        if self._train == path:
            self._refuse_wrapper(path, loose)
        else:
            findings += self._check_beside([f for f in folders if f not in self._splits.values()], loose)
            findings += self._find_unlabeled_inside(listed_classes)
        self.class_names = sort_classes({format_path(folder.name) for folder in self._find_classes(loose)})
        findings += self._check_names(listed_classes)
        self._files: dict[str, list[tuple[Path, int]]] = {}
        self._subfolders: dict[str, set[str]] = {}  # folders with files in each class folder; "" for files beside them
        for split in SPLITS:
            if split in self._splits:
                folder = self._splits[split]
                files = self._list_labeled(folder, split) if split != "unlabeled" else self._list_unlabeled(folder)
                self._files[split] = list(files)
        counts = self._list_frames()
        findings += [
            *describe_frames(self.name, counts, self.kind.phrase),
            *self._ignored.describe(self.name),
            *self._check_levels(listed_classes),
        ]
        if not any(self._files.values()):
            raise InputError(
                "; ".join(
                    [
                        f"folder {self.name!r} holds no {self.kind.noun}: expected {self.examples}",
                        *map(str, findings),
                    ]
                )
            )
        self.messages = findings

    def _list_entries(self, folder: Path) -> Entries:
        """Return the entries of a folder, listed once."""
        if folder not in self._entries:
            self._entries[folder] = _list_folder(folder, self.kind)
        return self._entries[folder]

    def _class_folders(self, folder: Path) -> list[Path]:
        return [f for f in self._list_entries(folder).folders if f not in self._splits.values()]

    def _find_classes(self, loose: Sequence[Path]) -> list[Path]:
        """Return the folders of the classes: of those to train on, or else of the splits to evaluate."""
        classes = self._class_folders(self._train)
        return classes if classes or loose else self._list_evaluated_classes()

    def _list_evaluated_classes(self) -> list[Path]:
        held = [self._splits[split] for split in ("val", "test") if split in self._splits]
        return [folder for split in held for folder in self._class_folders(split)]

    def _find_splits(self, folders: Sequence[Path], findings: list[Finding]) -> dict[str, Path]:
        """Return the folder of each split, and report other spellings in `findings`."""
        folder_of: dict[str, Path] = {}
        for folder in folders:
            split = find_split(folder.name)
            if split == UNCLEAR and self._has_files(folder):
                raise InputError(
                    f"folder '{show_path(folder)}' may mean validation or test: rename it to val or test; if it is a "
                    f"class, move all class folders into {str(self.path / 'train')!r}"
                )
            if split is None or split == UNCLEAR:
                continue
            if split in folder_of:
                raise InputError(
                    f"folders {folder_of[split].name!r} and {show_path(folder.name)!r} in {self.name!r} both mean the "
                    f"split {split}: join them, or rename or remove one; if they are classes, move all class folders "
                    f"into {str(self.path / 'train')!r}"
                )
            folder_of[split] = folder
            if folder.name != split:
                message = f"folder '{show_path(folder)}' is read as the split {split}"
                findings.append(Finding("layout", message, [show_path(folder.name)]))
        return folder_of

    def _find_unlabeled_inside(self, listed_classes: Sequence[str]) -> Iterator[Finding]:
        """Take a folder such as `train/unsup` for the unlabeled split, unless it can be a class."""
        folders = self._class_folders(self._train)
        inside = [folder for folder in folders if find_split(folder.name) == "unlabeled"]
        classes = {*listed_classes, *(folder.name for folder in self._list_evaluated_classes())}
        if len(inside) == 1 and len(folders) > 2 and "unlabeled" not in self._splits and inside[0].name not in classes:
            self._splits["unlabeled"] = inside[0]
            message = f"folder '{show_path(inside[0])}' is read as the split unlabeled"
            yield Finding("layout", message, [show_path(inside[0].name)])

    def _refuse_wrapper(self, path: Path, loose: Sequence[Path]) -> None:
        """Refuse a folder around the data set, whose name would be the only class."""
        inner, files = path, list(loose)
        while not files and len(folders := self._class_folders(inner)) == 1:
            inner = folders[0]
            folders, files, _ = self._list_entries(inner)
            names = [show_path(f.name) for f in folders if self._has_files(f)]
            if not files and (len(names) > 1 or any(map(find_split, names))):
                remedy = f"rename it to {'train'!r}" if len(self._splits) > 1 else f"give {str(inner)!r} as the source"
                raise InputError(
                    f"folder {self.name!r} holds only the folder '{show_path(relative(inner, path))}', which would be "
                    f"the only class; that folder holds {_format_names(names)}: {remedy}"
                )
        for folder in self._class_folders(path):
            if not mentions_split(folder.name):
                continue
            folders, files, _ = self._list_entries(folder)
            if not files and any(self._has_files(f) for f in folders):
                raise InputError(
                    f"folder '{show_path(folder)}' is named like a split and holds folders: rename it to one of "
                    f"{', '.join(SPLITS)}, move it away, or, if it is a class, move all class folders into "
                    f"{str(path / 'train')!r}"
                )

    def _check_beside(self, others: Sequence[Path], loose: Sequence[Path]) -> list[Finding]:
        """Return findings about files beside the folder of the training split, which are not read."""
        folders = [f for f in others if self._has_files(f)]
        beside = [show_path(f.name) for f in folders]
        names = _format_names(beside)
        inside, files, _ = self._list_entries(self._train)
        train = show_path(self._train)
        if folders and files and not inside:
            raise InputError(
                f"folder '{train}' holds {self.kind.plural} and no class folders, and {names} lie beside it: if "
                f"{self._train.name!r} is a class, too, move all class folders into a new folder 'train'; if not, "
                "move these away"
            )
        if len(inside) == 1 and not files:
            inner, files, _ = self._list_entries(inside[0])
            if not files and sum(self._has_files(f) for f in inner) > 1:
                raise InputError(
                    f"folder '{train}' holds only the folder {show_path(inside[0].name)!r}, which would be the only "
                    f"class; that folder holds {_format_names([show_path(f.name) for f in inner])}: move these up into "
                    f"'{train}'"
                )
        findings = []
        if folders:
            message = f"{self.kind.plural} in {names} are not read: only folders of splits are, beside '{train}'"
            findings.append(Finding("ignored", message, beside))
        if loose:
            count = f"{len(loose):,} {self.kind.plural if len(loose) > 1 else self.kind.noun}"
            message = f"{count} in {self.name!r} itself, beside '{train}', belong to no split or class"
            findings.append(Finding("ignored", message, [show_path(path.name) for path in loose]))
        return findings

    def _check_names(self, listed_classes: Sequence[str]) -> list[Finding]:
        """Return findings about class names that look alike, or like a split."""
        splits = [name for name in self.class_names if find_split(name) is not None or mentions_split(name)]
        return [
            *check_class_names(f"folder '{show_path(self._train)}'", self.class_names, listed_classes),
            *(
                Finding("layout", f"folder {name!r} in '{show_path(self._train)}' is read as a class", [name])
                for name in splits
            ),
        ]

    def _check_levels(self, listed_classes: Sequence[str]) -> list[Finding]:
        """Refuse or report folders inside the class folders that may be splits or the actual classes."""
        where = f"'{show_path(self._train)}'"
        shared = set.intersection(*self._subfolders.values()) if self._subfolders else set()
        for name, inside in self._subfolders.items():
            by_split = {find_split(inner): inner for inner in sorted(inside)}
            splits = {split: by_split[split] for split in ("train", "val", "test") if split in by_split}
            for_all = len(self._subfolders) > 1 and not shared.isdisjoint(splits.values())
            if for_all or ("train" in splits and len(splits) > 1):
                first = splits.get("train") or next(iter(splits.values()))
                raise InputError(
                    f"class folder {name!r} in {where} holds {_format_names(sorted(splits.values()))}, which are "
                    f"named like splits, but all {self.kind.plural} in it would be divided anew: move the splits above "
                    f"the classes, as in {first}/{name}, or rename them if they are not splits"
                )
        if (
            len(self._subfolders) < 2
            or "" in shared
            or len(shared) < 2
            or any(i != shared for i in self._subfolders.values())
        ):
            return []
        names, inner = list(self._subfolders), sorted(shared)
        if set(names) <= set(listed_classes):
            return []
        if all(map(_PIECE.fullmatch, names)):
            raise InputError(
                f"the folders {_format_names(names)} in {where} would be the classes, but are named like pieces of a "
                "data set, "
                f"and each one holds {_format_names(inner)}: join them, or list {', '.join(names)} in class_names if "
                "they are the classes"
            )
        message = (
            f"the folders {_format_names(names)} in {where} are read as the classes, and each one holds "
            f"{_format_names(inner)}, which are not: if these are the classes, give one of the former as the source, "
            "or join them"
        )
        return [Finding("layout", message, names)]

    def _list_unlabeled(self, folder: Path) -> Iterator[tuple[Path, int]]:
        return ((Path(path), -1) for _, path in find_files(str(folder), self.kind, ignored=self._ignored))

    def _list_labeled(self, folder: Path, split: str) -> Iterator[tuple[Path, int]]:
        _, loose, passed = self._list_entries(folder)
        classes = self._class_folders(folder)
        if folder != self.path:
            self._ignored.merge(passed)
        if not classes and folder == self._train:  # a folder of files without classes
            yield from ((path, -1) for path in loose)
            return
        for path in loose:
            sentence = (
                f"{self.kind.noun} '{show_path(path)}' lies beside the class folders: move it into a class folder or "
                f"to {str(self.path / 'unlabeled')!r}"
            )
            if not classes:
                sentence = (
                    f"folder '{show_path(folder)}' means the split {split} and holds {self.kind.plural}, such as "
                    f"'{show_path(path)}', but no class folders: move them into class folders or to "
                    f"{str(self.path / 'unlabeled')!r}; if {show_path(folder.name)!r} is a class, move all class "
                    f"folders into {str(self.path / 'train')!r}"
                )
            title = f"{self.kind.plural} beside the class folders"
            report_fault(title, split, relative(path, self.path), "without a class", sentence)
        numbers = {_compose(name): number for number, name in enumerate(self.class_names)}
        for child in classes:
            passed = IgnoredFiles(self.kind)
            files = [*find_files(str(child), self.kind, ignored=passed)]
            paths = [Path(path) for _, path in files]
            self._ignored.merge(passed)
            name = format_path(child.name)
            self._subfolders.setdefault(name, set()).update(
                inner.rpartition("/")[0].split("/")[0] for inner, _ in files
            )
            label = numbers.get(_compose(name))
            if label is None:
                sentence = (
                    f"class {name!r} in {str(folder)!r} does not exist in {str(self._train)!r}"
                    f"{did_you_mean(name, self.class_names)}: rename it or add training {self.kind.plural}"
                )
                for path in paths or [child]:
                    report_fault(UNTRAINED, split, relative(path, self.path), f"class {name!r}", sentence)
                continue
            if not paths:
                sentence = "; ".join(
                    [
                        f"class folder {str(child)!r} holds no {self.kind.noun}: add some or remove the folder",
                        *map(str, passed.describe(str(child))),
                    ]
                )
                title = f"class folders without {self.kind.phrase}"
                report_fault(title, split, relative(child, self.path), "empty", sentence)
            yield from ((path, label) for path in paths)

    def _list_frames(self) -> list[int]:
        """List each frame of files that hold several, and return the number of frames of each file."""
        all_counts = []
        for split, files in self._files.items():
            counts = self.count_frames([path for path, _ in files])
            self._files[split] = [
                (Path(frame), label)
                for (path, label), count in zip(files, counts, strict=True)
                for frame in ([path] if count == 1 else list_frames(str(path), count))
            ]
            all_counts += counts
        return all_counts

    def _has_files(self, folder: Path) -> bool:
        return next(find_files(str(folder), self.kind), None) is not None

    @abstractmethod
    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> Storage:
        """Return the files of one split without reading them.

        Args:
            paths: Paths of the files.
            ids: Names of the files, relative to the folder.
        """

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no file is read but for its group."""
        parts = {}
        for split, files in self._files.items():
            paths = [path for path, _ in files]
            ids = [relative(path, self.path) for path in paths]
            labels = torch.tensor([label for _, label in files], dtype=torch.long)
            if files:
                parts[split] = Examples(self.open_files(paths, ids), ids, labels)
        return group_files(self, self.path, parts)


def _list_folder(folder: Path, kind: FileKind) -> Entries:
    listing = Entries([], [], IgnoredFiles(kind))
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"folder '{show_path(folder)}' cannot be listed ({error.strerror}): fix its permissions, or leave it out"
        ) from error
    for entry in entries:
        is_inside = is_folder(entry)
        if is_system_folder(entry.name):
            (listing.ignored.add_folder if is_inside else listing.ignored.add_file)(entry.name)
        elif is_inside:
            listing.folders.append(folder / entry.name)
        elif kind.is_named(entry.name) or kind.has_content(entry.path):
            listing.files.append(folder / entry.name)
        else:
            listing.ignored.add_file(entry.name)
    return listing


def _format_names(names: Sequence[str]) -> str:
    return ", ".join([*names[:_FEW], *(["..."] if len(names) > _FEW else [])])


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)
