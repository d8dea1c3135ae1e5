"""Files that cannot be read: named, counted, and refused or left out."""

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError

# Exceptions for an unreadable file: those of decoders become OSError where files are opened; later steps raise others.
UNREADABLE = (OSError, ValueError, MemoryError)


def format_path(path: str | Path) -> str:
    """Return a path as text that can be written as UTF-8, with other bytes escaped.

    Args:
        path: Path of a file.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def show_path(path: str | Path) -> str:
    """Return a path as text on one line, with bytes that are not UTF-8 and unprintable characters escaped.

    Args:
        path: Path of a file.
    """
    text = format_path(path)
    if text.isprintable():  # nearly always, and each file that is read needs it
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe_read_error(error: BaseException) -> str:
    """Describe in a few words why a file cannot be read.

    Args:
        error: Exception raised while the file was read.
    """
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_file(path: str | Path) -> None:
    """Refuse a path that is not a regular file with content: decoders hang on pipes and raise obscure errors.

    Args:
        path: Path to check.

    Raises:
        OSError: The path is not a regular file, or the file is empty; the message says which.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if not os.path.islink(path):
            raise
        raise OSError("it is a broken link" if error.errno == errno.ENOENT else "it is a link to itself") from error
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(path):  # raises the reason itself where the folder cannot be read
            raise OSError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a pipe, socket or device")
    if not status.st_size:
        raise OSError("it has zero bytes")


SKIPPED = "skipped_images.txt"


@dataclass
class BadFiles:
    """Record of unreadable files, with the policy for them.

    Attributes:
        policy: `raise` to stop at the first unreadable file, `skip` to leave them out, count and list them.
        setting: Name of the setting that holds the policy.
        reasons: Reason of each unreadable file, by its path from `show_path`.
        listing: Name of the file in a run's folder that lists them.
    """

    policy: str = "raise"
    setting: str = "on_bad"
    reasons: dict[str, str] = field(default_factory=dict)
    listing: str = SKIPPED
    _num_reported: int = 0

    def report(self, path: str | Path, reason: str) -> None:
        """Record an unreadable file.

        Args:
            path: Path of the file.
            reason: Why it cannot be read.

        Raises:
            InputError: The policy is `raise`.
        """
        name = show_path(path)
        if self.policy == "raise":
            raise InputError(
                f"file '{name}' cannot be read: {reason}; replace or remove it, or set {self.setting}: skip"
            )
        self.reasons[name] = reason

    @property
    def num_unreported(self) -> int:
        """Number of files recorded since the last summary."""
        return len(self.reasons) - self._num_reported

    def summarize(self) -> str:
        """Return a sentence with the number of files and the first of them, and reset `num_unreported`."""
        self._num_reported = len(self.reasons)
        first = ", ".join(sorted(self.reasons)[:5])
        more = ", ..." if self._num_reported > 5 else ""
        what = "file is" if self._num_reported == 1 else "files are"
        return f"{self._num_reported:,} unreadable {what} skipped: {first}{more}"

    def write(self, folder: Path, rank: int) -> None:
        """Write the files and their reasons to `listing` in a folder, if there are any.

        Args:
            folder: Folder of the run.
            rank: Rank of the process; each reads other files and writes its own list.
        """
        if self.reasons:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items())]
            path = folder / (self.listing if rank == 0 else f"{self.listing.removesuffix('.txt')}.rank{rank}.txt")
            write_text(path, "".join(lines))
