"""Picture files to predict: found one after the other, never all held in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_lightning.data.shards import INDEX, ShardSource
from sft_lightning.data.source import Examples, concatenated
from sft_lightning.data.sources import open_source
from sft_lightning.data.table_paths import TableFolders
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.vision.file_checks import find_damage, format_path, show_path
from sft_lightning.data.vision.file_kinds import IgnoredFiles
from sft_lightning.data.vision.folders import find_images
from sft_lightning.utils.errors import InputError

_MAX_SORTED = 10_000  # so many entries of a folder are held, to give them in the order of their names


class Listing(ABC):
    """Files in an order that is the same for all processes of a run.

    Attributes:
        name: What the user wrote.
        count: Number of files when it was opened; those that come later are given, too.
        messages: What a user needs to know of what is passed over.
    """

    name: str
    count: int
    messages: Sequence[str] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The name of each picture, and the path of its file."""


class FolderListing(Listing):
    """All image files below a folder; hidden ones and those of the system are left out, and counted.

    Entries of a folder come in the order of their names where there are at most 10,000 of them. Of a larger one the
    first 10,000 that the system tells do, and the others as the system tells them.
    """

    def __init__(self, path: Path) -> None:
        """Counts.

        Args:
            path: The folder.
        """
        self.name, self.path = str(path), path
        passed = IgnoredFiles()
        self.count = sum(1 for _ in find_images(str(path), _MAX_SORTED, passed))
        self.messages = passed.messages(self.name)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Paths relative to the folder, and the paths."""
        return find_images(str(self.path), _MAX_SORTED)


class TableListing(Listing):
    """The files that a CSV or Parquet file lists in its column `path`, in its order."""

    def __init__(self, path: Path, check: bool, root: str = "data") -> None:
        """Counts.

        Args:
            path: The table; paths in it are relative to its folder or to `root`, and lead to files in one of them.
            root: A second folder.
            check: Refuse a file that does not exist now, before anything is predicted.

        Raises:
            InputError: The table cannot be read, or lists a file elsewhere or one that does not exist.
        """
        self.name, self.path, self.count = str(path), path, 0
        self._folders = TableFolders(path, root)
        for line, name, _, is_there in self._read_lines():
            if check and not is_there:
                _, sentence = self._folders.explain(line, name)
                raise InputError(f"{sentence}: correct the line, or set on_bad_image: skip")
            self.count += 1

    def _read_lines(self) -> Iterator[tuple[int, str, str, bool]]:
        for line, row in TableRows(self.path, ("path",)):
            if not row["path"]:
                raise InputError(f"manifest {self.name!r}, line {line}: the path is blank")
            file, about = self._folders.find(line, row["path"])
            yield line, row["path"], file, about is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Paths as they are listed, and where the files lie."""
        return ((name, file) for _, name, file, _ in self._read_lines())


class SingleFile(Listing):
    """A single picture."""

    def __init__(self, path: Path, setting: str) -> None:
        """Looks at the file.

        Args:
            path: The file.
            setting: What the user calls it.

        Raises:
            InputError: It is no picture.
        """
        self.name, self.path, self.count = str(path), path, 1
        reason = find_damage(path)
        if reason is not None:
            raise InputError(
                f"{setting} '{show_path(path)}' cannot be read as an image ({reason}): give an image, a folder, or a "
                ".csv or .parquet file with a column 'path'"
            )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The file."""
        return iter([(format_path(self.path.name), str(self.path))])


def open_prediction_source(name: str, root: str = "data", check: bool = True) -> Listing | Examples:
    """The pictures to predict: all of a folder, those that a manifest lists, one file, or a data set's test part.

    Args:
        name: What the user wrote.
        root: Folder that holds torchvision data sets, and files that a manifest in another folder names.
        check: Whether files that a manifest lists must exist.

    Raises:
        InputError: There is no picture.
    """
    path, setting = Path(name), "predict_source"
    listing: Listing
    if (path / INDEX).is_file():
        return concatenated(*((part, range(len(part))) for part in ShardSource(path).load().values()))
    if path.is_dir():
        listing = FolderListing(path)
    elif path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        listing = TableListing(path, check, root)
    elif path.is_file():
        listing = SingleFile(path, setting)
    else:
        parts = open_source(name, root, setting=setting).load()
        return parts.get("test") or next(iter(parts.values()))
    if not listing.count:
        raise InputError(
            "; ".join(
                [f"predict_source {name!r} holds no image: give a folder or manifest with some", *listing.messages]
            )
        )
    return listing
