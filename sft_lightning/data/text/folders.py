"""Class folders of `.txt` files, with or without folders of splits, and files to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sft_lightning.data.class_folders import ClassFolders
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import FileKind, IgnoredFiles, find_files
from sft_lightning.data.source import relative
from sft_lightning.data.text.encodings import read_text
from sft_lightning.data.text.storage import Encoding, TextStorage

TEXTS = FileKind("text", "a text", (".txt",), (), "", lambda path: False)
_FEW = 3  # names that a message lists


class TextFolders(ClassFolders):
    """Class folders of texts, each a file."""

    kind: ClassVar[FileKind] = TEXTS
    examples: ClassVar[str] = "CLASS/text.txt, train/CLASS/text.txt or only texts (.txt)"

    def __init__(self, path: Path, encoding: Encoding, listed_classes: Sequence[str] = ()) -> None:
        """List the classes and their files.

        Args:
            path: Path of the folder.
            encoding: How texts become tokens.
            listed_classes: Class names that the user listed, which may look alike.

        Raises:
            InputError: The folder cannot be read as class folders.
        """
        self._encoding = encoding
        self.others: list[str] = []
        super().__init__(path, listed_classes)

    def open_files(self, paths: Sequence[Path], ids: Sequence[str]) -> TextStorage:
        """Return the texts of one split."""
        return TextStorage([(text,) for text in read_texts(paths, ids, self.others)], self._encoding)


def read_texts(paths: Sequence[Path], ids: Sequence[str], others: list[str]) -> list[str]:
    """Return the texts of files.

    Args:
        paths: Paths of the files.
        ids: Names of the files.
        others: Names of those that were read as Windows-1252, which are added.

    Raises:
        InputError: One of them cannot be read.
    """
    texts = []
    for path, name in zip(paths, ids, strict=True):
        text, is_other = read_text(path)
        texts.append(text)
        others += [name] if is_other else []
    return texts


def list_texts(folder: Path) -> tuple[list[Path], list[str], list[Finding]]:
    """Return the paths and names of all texts below a folder, and findings about ignored files.

    Args:
        folder: Folder.
    """
    ignored = IgnoredFiles(TEXTS)
    paths = [Path(path) for _, path in find_files(str(folder), TEXTS, ignored=ignored)]
    return paths, [relative(path, folder) for path in paths], ignored.describe(str(folder))


def describe_encodings(where: str, others: Sequence[str]) -> list[Finding]:
    """Return a finding about files that were read as Windows-1252.

    Args:
        where: Kind and name of the source.
        others: Names of these files.
    """
    if not others:
        return []
    files = "1 file is" if len(others) == 1 else f"{len(others):,} files are"
    listed = ", ".join([*others[:_FEW], *(["..."] if len(others) > _FEW else [])])
    message = f"{where}: {files} not UTF-8, and read as Windows-1252 ({listed}): save as UTF-8 if that is wrong"
    return [Finding("file_format", message, [*others])]
