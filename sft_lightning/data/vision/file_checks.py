"""Find unreadable image files, and refuse, count or leave them out."""

import errno
import os
import stat
from pathlib import Path

from sft_lightning.data.bad_examples import UNREADABLE, describe_read_error


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


def find_damage(path: Path) -> str | None:
    """Return why a file cannot be read as an image, or None if it can.

    Args:
        path: Path of the file.
    """
    from sft_lightning.data.vision.image_files import inspect_image  # imports this module

    try:
        inspect_image(path)
    except UNREADABLE as error:
        return describe_read_error(error)
    return None
