"""Files that are whole or not there: staged beside the target, flushed to the disk, renamed.

A process that is killed leaves the old file, or the new one, and at most a staged `NAME.part` that nobody reads and
that the next writing of NAME replaces.
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
    """A file to be written in place of another, which becomes that other at the end; its folder is made.

    Args:
        path: What it becomes.

    Yields:
        The staged file, beside it: a rename across devices would not be one.

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
        with suppress(OSError):  # its folder is gone, or is no folder: what went wrong is told already
            staged.unlink(missing_ok=True)
        found = _find_os_error(error)
        if found is not None:
            raise _unwritable(path, found) from error
        raise


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{str(path)!r} cannot be written ({error.strerror}): free space or mend the permissions, and go on"
    )


@contextmanager
def open_atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name at the end.

    Args:
        path: What it becomes; it does not exist.

    Yields:
        The staged folder, beside it, empty: one that was left half filled is removed.

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
    """The system's error behind another; safetensors writes its number into a text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        if found := re.search(r"\(os error (\d+)\)", str(seen)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut; where a folder cannot be opened, as on Windows, there is no such call."""
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
    """Only one process at a time is inside, of all that lock the same file; others wait.

    The lock ends with its process and those that it has started. Processes of several machines wait for each other
    where the file lies on a disk that knows locks (NFS 4, Lustre mounted with `flock`). Windows has no such lock:
    there, nobody waits.

    Args:
        file: Open for writing.
        waiting: Called once where another process is inside.
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
        fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do: children that were forked inside hold it, too


def write_text(path: Path, text: str) -> None:
    """Writes a file.

    Args:
        path: The file; its folder is made.
        text: Its content.

    Raises:
        InputError: As `open_atomic`.
    """
    with open_atomic(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Any) -> None:
    """Writes a file.

    Args:
        path: The file; its folder is made.
        content: Of JSON's types.

    Raises:
        InputError: As `open_atomic`.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")
