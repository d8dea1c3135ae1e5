"""Locks: one training at a time in the folder of a run, and one process at a time at a file."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sft_lightning.utils.errors import InputError

LOCK = ".lock"
_EVENTS = "events.out.tfevents."
_held: set[Path] = set()  # files that this process has locked; opening and closing one again would end its lock


class FileLock:
    """A file that one process at a time holds.

    It is a POSIX record lock, which ends with its process, even by a crash, and which data-loading processes do not
    inherit. It holds across machines if the file system supports such locks. On Windows, nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        """Hold nothing yet.

        Args:
            path: File of the lock, in a folder that exists; it is made, and removed at the end.
        """
        self.path = path
        self._file: IO[str] | None = None

    def take(self) -> str | None:
        """Lock the file and return None, or return a description of the process that holds it."""
        if sys.platform == "win32":
            return None
        import fcntl

        with suppress(OSError):  # a file system without locks, or without write permission
            while True:
                file = self.path.open("a+", encoding="utf-8")
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    return holder
                # The former holder may have removed the file between the two calls.
                if self.path.is_file() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    break
                file.close()
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            self._file = file
            _held.add(self.path.resolve())
        return None

    def release(self) -> None:
        """Let others lock the file."""
        if self._file is not None:
            _held.discard(self.path.resolve())
            with suppress(OSError):
                self.path.unlink()
            self._file.close()
        self._file = None


class RunLock:
    """The folder of a training, in which no other process trains meanwhile."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.folder: Path | None = None
        self.holder = ""  # description of the process that holds a refused lock
        self._lock: FileLock | None = None

    def __deepcopy__(self, memo: object) -> "RunLock":
        """Return the lock itself: a copy of a model holds no lock of its own (StochasticWeightAveraging copies it)."""
        return self

    def claim_version(self, runs: Path) -> Path:
        """Make the folder of a new version and lock it; processes that ask at once get one each.

        Args:
            runs: Folder of all versions, which is made.

        Raises:
            InputError: The folder cannot be written to.
        """
        try:
            runs.mkdir(parents=True, exist_ok=True)
            number = 1 + max(
                (int(n) for path in runs.glob("version_*") if (n := path.name[8:]).isdecimal()), default=-1
            )
            while True:
                folder = runs / f"version_{number}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise InputError(
                f"{str(runs)!r} cannot be written ({error.strerror}): free space or fix the permissions, and resume"
            ) from error
        self.lock(folder)
        return folder

    def lock(self, folder: Path) -> None:
        """Lock the folder of a run that is trained.

        Args:
            folder: Folder of the run.

        Raises:
            InputError: Another process is training in it.
        """
        lock = FileLock(folder / LOCK)
        if (holder := lock.take()) is not None:
            self.holder = holder
            raise InputError(
                f"run {str(folder)!r} is being trained by {holder}: wait until it has ended, or stop it; two trainings "
                f"in one folder would mix their results (if it is dead, remove {str(lock.path)!r})"
            )
        self.folder, self._lock = folder, lock

    def release(self) -> None:
        """Let others train here, and remove the folder of a training that never began."""
        if self._lock is not None:
            self._lock.release()
        if self.folder is not None:
            with suppress(OSError):
                left = list(self.folder.iterdir())
                # TensorBoard's file is opened before the data is looked at; a training that begins writes others.
                for path in left if all(path.name.startswith(_EVENTS) for path in left) else []:
                    path.unlink()
                self.folder.rmdir()
        self.folder = self._lock = None


def is_training(folder: Path) -> bool:
    """Return whether another process is training in the folder of a run.

    Args:
        folder: Folder of the run.
    """
    path = folder / LOCK
    if sys.platform == "win32" or not path.is_file() or path.resolve() in _held:
        return False
    import fcntl

    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        pass
    return False


@contextmanager
def lock_folder(folder: Path, what: str) -> Iterator[None]:
    """Make a folder and lock it, so that two processes do not train the same run in it.

    Args:
        folder: Folder, such as that of a study.
        what: Name of what is computed there, for the message, such as "study 'mine'".

    Raises:
        InputError: The folder cannot be written, or another process holds the lock.
    """
    lock = RunLock()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.lock(folder)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written ({error.strerror}): correct its permissions") from error
    except InputError as error:
        raise InputError(
            f"{what} is already running, started by {lock.holder}: wait for it to end, stop it, or give this one "
            "another name"
        ) from error
    try:
        yield
    finally:
        lock.release()
