"""A folder for each training, and one training at a time in it."""

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from sft_lightning.errors import InputError

LOCK = ".lock"
_EVENTS = "events.out.tfevents."


class RunLock:
    """The folder of a training, which no other process trains in meanwhile.

    The lock is one of POSIX's records: it ends with its process, also by a crash, and processes that load data do not
    inherit it. It holds across machines where the file system knows such locks. Windows has none: there, nobody waits.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.folder: Path | None = None
        self.holder = ""  # the process that holds a lock which was refused
        self._file: IO[str] | None = None

    def __deepcopy__(self, memo: object) -> "RunLock":
        """Return the lock itself: a copy of a model holds no lock of its own (StochasticWeightAveraging copies it)."""
        return self

    def claim_version(self, runs: Path) -> Path:
        """Make the folder of a new version and lock it; processes that ask at once get one each.

        Args:
            runs: Folder of all versions, which is made.

        Raises:
            InputError: It cannot be written to.
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
                f"{str(runs)!r} cannot be written ({error.strerror}): free space or mend the permissions, and go on"
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
        self.folder = folder
        if sys.platform == "win32":
            return
        import fcntl

        path = folder / LOCK
        with suppress(OSError):  # a file system that knows no locks, or may not be written to
            while True:
                file = path.open("a+", encoding="utf-8")
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:
                    file.seek(0)
                    self.holder = file.read().strip() or "another process"
                    file.close()
                    self.folder = None
                    raise InputError(
                        f"run {str(folder)!r} is being trained by {self.holder}: wait until it has ended, or stop it; "
                        f"two trainings in one folder would mix their results (if it is dead, remove {str(path)!r})"
                    ) from error
                # The former holder may have removed the file between the two calls.
                if path.is_file() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    break
                file.close()
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            self._file = file

    def release(self) -> None:
        """Let others train here; a folder of a training that never began is removed."""
        if self._file is not None:
            with suppress(OSError):
                Path(self._file.name).unlink()
            self._file.close()
        if self.folder is not None:
            with suppress(OSError):
                left = list(self.folder.iterdir())
                # TensorBoard's file is opened before the data is looked at; a training that begins writes others.
                for path in left if all(path.name.startswith(_EVENTS) for path in left) else []:
                    path.unlink()
                self.folder.rmdir()
        self.folder = self._file = None


def is_trained(folder: Path) -> bool:
    """Whether another process is training in the folder of a run.

    Args:
        folder: Folder of the run.
    """
    if sys.platform == "win32" or not (folder / LOCK).is_file():
        return False
    import fcntl

    try:
        with (folder / LOCK).open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        pass
    return False
