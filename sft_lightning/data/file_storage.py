"""Storage of examples that are files, whatever they hold."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sft_lightning.data.digests import combine_digests, digest_files
from sft_lightning.data.frames import split_path
from sft_lightning.data.storage import RecordStorage


class FileStorage(RecordStorage):
    """Numbered collection of files, or of frames of files.

    Attributes:
        paths: Path of each file or frame.
        ids: Name of each file in manifests and messages, the same on every machine.
    """

    def __init__(self, paths: Sequence[Path], ids: Sequence[str]) -> None:
        """Keep the list; nothing is read.

        Args:
            paths: Paths of the files or frames.
            ids: Name of each file in manifests and messages, the same on every machine.
        """
        self.paths = list(paths)
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> Path:
        """Return the path of a file."""
        return self.paths[index]

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Return the size of each file in bytes, for each of its frames; 0 for a missing file."""
        files = [split_path(self.paths[i])[0] for i in indices]
        return [os.path.getsize(file) if os.path.isfile(file) else 0 for file in files]

    def digest(self) -> str:
        """Compute the SHA-256 of names and contents, in the order of the names."""
        return combine_digests(sorted(zip(self.ids, digest_files(self.paths), strict=True), key=lambda row: row[0]))

    def digest_sizes(self) -> str:
        """Compute the SHA-256 of names and sizes, which earlier versions used in place of the content digest."""
        rows = sorted(zip(self.ids, self.sizes(range(len(self))), strict=True))
        return hashlib.sha256("".join(f"{name}\t{size}\n" for name, size in rows).encode()).hexdigest()

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of the bytes of each file.

        Raises:
            OSError: A file cannot be read.
        """
        paths = [self.paths[i] for i in indices]
        digests = digest_files(paths)
        for path, digest in zip(paths, digests, strict=True):
            if digest is None:
                raise OSError(f"file {str(path)!r} cannot be read")
        return [digest for digest in digests if digest is not None]
