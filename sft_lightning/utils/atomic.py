"""Files that are complete or absent: staged beside the target, flushed to the disk, renamed.

A process that is killed leaves the old file or the new one, and at most a staged `NAME.part` that nothing reads and
that the next write of NAME replaces.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sft_lightning.utils.errors import InputError

STAGED_SUFFIX = ".part"


@contextmanager
def open_atomic(path: Path) -> Iterator[Path]:
    """Write a file that takes its name only when it is complete.

    Args:
        path: Path of the file; its folder is made.

    Yields:
        Path of the staged file, beside the target: a rename across devices would not be atomic.

    Raises:
        InputError: The disk is full, or the folder may not be written to.
    """
    staged = path.with_name(path.name + STAGED_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        staged.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # its folder is gone, or is not a folder: the error says so already
            staged.unlink(missing_ok=True)
        found = _find_os_error(error)
        if found is not None:
            raise _unwritable(path, found) from error
        raise


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{str(path)!r} cannot be written ({error.strerror}): free space or fix the permissions, and resume"
    )


@contextmanager
def open_atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes its name only when it is complete.

    Args:
        path: Path of the folder, which does not exist yet.

    Yields:
        Path of the staged folder, beside the target and empty: an incomplete one from before is removed.

    Raises:
        InputError: The disk is full, or the folder above may not be written to.
    """
    staged = path.with_name(path.name + STAGED_SUFFIX)
    try:
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir(parents=True)
        yield staged
        for file in (one for one in staged.rglob("*") if one.is_file()):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        for folder in (staged, *(one for one in staged.rglob("*") if one.is_dir())):
            _sync_folder(folder)
        staged.rename(path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        found = None if isinstance(error, InputError) else _find_os_error(error)
        if found is not None:
            raise _unwritable(path, found) from error
        raise


def _find_os_error(error: BaseException) -> OSError | None:
    """Return the system's error behind another one, whose number safetensors writes into its message."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno is not None:
            return current
        if number := re.search(r"\(os error (\d+)\)", str(current)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        current = current.__cause__ or current.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; does nothing where a folder cannot be opened, as on Windows."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hold_lock(file: IO[Any], waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock on a file, so that one process at a time is inside of the context.

    The lock ends with its process and those that it has started. Processes on several machines wait for each other if
    the file system supports locks (NFS 4, Lustre mounted with `flock`). On Windows, nothing is locked.

    Args:
        file: File that is open for writing.
        waiting: Function to call once if another process holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: children that were forked inside hold it, too


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Args:
        path: Path of the file; its folder is made.
        text: Content of the file.

    Raises:
        InputError: The disk is full, or the folder may not be written to.
    """
    with open_atomic(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Args:
        path: Path of the file; its folder is made.
        content: Value that JSON can hold.

    Raises:
        InputError: The disk is full, or the folder may not be written to.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")
