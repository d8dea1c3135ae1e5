"""List image files to predict one by one, without holding all of them in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sft_lightning.data.bad_examples import format_path, show_path
from sft_lightning.data.frames import list_frames, name_frames, split_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import IgnoredFiles
from sft_lightning.data.source import Examples, concatenated
from sft_lightning.data.table_paths import TableFolders
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.vision.dicom_header import count_frames
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.folders import find_images
from sft_lightning.data.vision.shards import INDEX, ShardSource
from sft_lightning.data.vision.sources import open_source
from sft_lightning.utils.errors import InputError

_MAX_SORTED = 10_000  # entries of a folder that are held in memory to sort them by name


class Listing(ABC):
    """Listing of files, or of the frames of those that hold several, in the same order for all processes of a run.

    Attributes:
        name: Path as the user wrote it.
        count: Number of images when the listing was opened; files added later are listed, too.
        messages: Findings about ignored files.
    """

    name: str
    count: int
    messages: Sequence[Finding] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each image and the path of its file."""


class FolderListing(Listing):
    """Listing of all image files below a folder, without hidden and system files, which are counted.

    Entries of a folder are sorted by name. Of a folder with more than 10,000 entries, the first 10,000 that the system
    returns are sorted, and the others follow in the order of the system.
    """

    def __init__(self, path: Path) -> None:
        """Count the files.

        Args:
            path: Path of the folder.
        """
        self.name, self.path = str(path), path
        passed = IgnoredFiles(IMAGES)
        self.count = sum(1 for _ in _list_frames(find_images(str(path), _MAX_SORTED, passed)))
        self.messages = passed.describe(self.name)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield paths relative to the folder, and the paths themselves."""
        return _list_frames(find_images(str(self.path), _MAX_SORTED))


class TableListing(Listing):
    """Listing of the files in the column `path` of a CSV or Parquet file, in its order."""

    def __init__(self, path: Path, check: bool, root: str = "data") -> None:
        """Count the files.

        Args:
            path: Path of the table. Paths in it are relative to its folder or to `root` and must stay inside one.
            root: Path of the second folder.
            check: Whether to refuse missing files now, before anything is predicted.

        Raises:
            InputError: The table cannot be read, or lists a file outside both folders or a missing one.
        """
        self.name, self.path, self.count = str(path), path, 0
        self._folders = TableFolders(path, root, has_frames=True)
        for line, name, file, is_there in self._read_lines():
            if check and not is_there:
                _, sentence = self._folders.explain(line, name)
                raise InputError(f"{sentence}: correct the line, or set on_bad_image: skip")
            self.count += count_frames(file)

    def _read_lines(self) -> Iterator[tuple[int, str, str, bool]]:
        for line, row in TableRows(self.path, ("path",)):
            if not row["path"]:
                raise InputError(f"manifest {self.name!r}, line {line}: the path is blank")
            file, status = self._folders.find(line, row["path"])
            yield line, row["path"], file, status is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the paths as listed, and the paths of the files."""
        return _list_frames((name, file) for _, name, file, _ in self._read_lines())


class SingleFile(Listing):
    """Listing of a single image."""

    def __init__(self, path: Path, setting: str) -> None:
        """Check the file.

        Args:
            path: Path of the file.
            setting: Name of the setting that holds the path, for the message.

        Raises:
            InputError: The file cannot be read as an image.
        """
        self.name, self.path, self.count = str(path), path, count_frames(path)
        reason = find_damage(Path(list_frames(str(path), self.count)[0]))
        if reason is not None:
            raise InputError(
                f"{setting} '{show_path(path)}' cannot be read as an image ({reason}): give an image, a folder, or a "
                ".csv or .parquet file with a column 'path'"
            )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the path of the file."""
        return _list_frames([(format_path(self.path.name), str(self.path))])


def _list_frames(files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield name and path of each file, or of each of its frames."""
    for name, path in files:
        count = count_frames(path)
        yield from zip(name_frames(name, count), list_frames(path, count), strict=True)


def open_prediction_source(name: str, root: str = "data", check: bool = True) -> Listing | Examples:
    """Open the images to predict: those of a folder or manifest, one file, or the test split of a data set.

    Args:
        name: Path or name of a data set, as the user wrote it.
        root: Folder of torchvision data sets, and second folder for the files of a manifest.
        check: Whether files that a manifest lists must exist.

    Raises:
        InputError: There are no images.
    """
    path, setting = Path(name), "predict_source"
    listing: Listing
    if (path / INDEX).is_file():
        return concatenated(*((part, range(len(part))) for part in ShardSource(path).load().values()))
    if path.is_dir():
        listing = FolderListing(path)
    elif path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        listing = TableListing(path, check, root)
    elif Path(split_path(path)[0]).is_file():
        listing = SingleFile(path, setting)
    else:
        parts = open_source(name, root, setting=setting).load()
        return parts.get("test") or next(iter(parts.values()))
    if not listing.count:
        raise InputError(
            "; ".join(
                [
                    f"predict_source {name!r} holds no image: give a folder or manifest with some",
                    *map(str, listing.messages),
                ]
            )
        )
    return listing
