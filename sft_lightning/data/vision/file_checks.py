"""Files that are no whole pictures: found, named, counted, and refused or left out."""

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError

# What is raised for one: `open_image_file` turns all that decoders raise into OSError; resizing may raise the others.
UNREADABLE = (OSError, ValueError, MemoryError)


def format_path(path: str | Path) -> str:
    """A path as text that every file takes; bytes that are no UTF-8 are spelled out.

    Args:
        path: Of a file.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def show_path(path: str | Path) -> str:
    """A path as text on one line; line breaks and the like are spelled out, too.

    Args:
        path: Of a file.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in format_path(path))


def check_file(path: str | Path) -> None:
    """Refuses what is no file with content, before a decoder waits for it forever or says something odd of it.

    Args:
        path: Of a file.

    Raises:
        OSError: With a reason in a few words.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        if not os.path.islink(path):
            raise
        raise OSError("it is a broken link" if error.errno == errno.ENOENT else "it is a link to itself") from error
    if stat.S_ISDIR(found.st_mode):
        with os.scandir(path):  # or it says why not
            raise OSError("it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no file but a pipe, socket or device")
    if not found.st_size:
        raise OSError("it has zero bytes")


def find_damage(path: Path) -> str | None:
    """Says why a file is no whole picture, or None when it is.

    Args:
        path: The file.
    """
    from sft_lightning.data.vision.image_files import inspect_image  # which imports this module

    try:
        inspect_image(path)
    except UNREADABLE as error:
        return describe_read_error(error)
    return None


def describe_read_error(error: BaseException) -> str:
    """Why a file is no picture, in a few words.

    Args:
        error: What was raised when it was read.
    """
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "it is no picture that can be read" if "cannot identify" in lines[0] else lines[0]


SKIPPED = "skipped_images.txt"


@dataclass
class BadImages:
    """The unreadable pictures met so far, and what to do with the next one.

    Attributes:
        policy: `raise` stops at the first, `skip` leaves it out, counts and lists it.
        reasons: Path, as `show_path` has it, and reason of each.
    """

    policy: str = "raise"
    reasons: dict[str, str] = field(default_factory=dict)
    _num_reported: int = 0

    def report(self, path: str | Path, reason: str) -> None:
        """Records one unreadable picture.

        Args:
            path: Of the file.
            reason: Why it cannot be read.

        Raises:
            InputError: The policy is `raise`.
        """
        name = show_path(path)
        if self.policy == "raise":
            raise InputError(
                f"image '{name}' cannot be read: {reason}; replace or remove it, or set on_bad_image: skip"
            )
        self.reasons[name] = reason

    @property
    def num_unreported(self) -> int:
        """How many were found since it was told how many there are."""
        return len(self.reasons) - self._num_reported

    def summarize(self) -> str:
        """How many there are, and which are the first; said once."""
        self._num_reported = len(self.reasons)
        first = ", ".join(sorted(self.reasons)[:5])
        more = ", ..." if self._num_reported > 5 else ""
        what = "image is" if self._num_reported == 1 else "images are"
        return f"{self._num_reported:,} unreadable {what} skipped: {first}{more}"

    def write(self, folder: Path, rank: int) -> None:
        """Lists them in `skipped_images.txt`, if there are any.

        Args:
            folder: Of the run.
            rank: Of the process, which reads files of its own.
        """
        if self.reasons:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items())]
            path = folder / (SKIPPED if rank == 0 else f"{SKIPPED.removesuffix('.txt')}.rank{rank}.txt")
            write_text(path, "".join(lines))
