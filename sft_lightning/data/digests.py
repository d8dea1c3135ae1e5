"""SHA-256 of files' contents, computed once and kept in a small database until a file changes.

A kept digest counts only while size, inode and both times of its file (of the content and of the inode) are what they
were: a program may set back the time of the content (`cp -p`, `touch -r`, a restored backup), not that of the inode.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from sft_lightning.data.frames import split_path
from sft_lightning.utils.progress_lines import LoggedProgress

STORE = Path("lightning_logs") / "digests.sqlite"
_TABLE = "create table if not exists files (path blob primary key, state text, digest blob) without rowid"
_TICK = 2_000_000_000  # ns; a file changed within this time may change again without its timestamps changing
_QUERY = 500  # paths per SQL query; SQLite limits the number of parameters
_CHUNK = 64  # files per task of a thread


def digest_files(paths: Sequence[Path]) -> list[bytes | None]:
    """Return the SHA-256 of the content of each file, from the store if the file is unchanged.

    Args:
        paths: Files to read, or frames of files, whose digest is that of the file and the number of the frame.

    Returns:
        Digest (32 bytes) of each file, or None for a file that cannot be read.
    """
    frames = [split_path(path) for path in paths]
    files = [*dict.fromkeys(file for file, _ in frames)]
    digests = dict(zip(files, _digest_whole(files), strict=True))
    return [_digest_frame(digests[file], number) for file, number in frames]


def _digest_frame(file: bytes | None, number: int | None) -> bytes | None:
    return file if file is None or number is None else hashlib.sha256(file + f"#{number}".encode()).digest()


def _digest_whole(files: Sequence[str]) -> list[bytes | None]:
    keys = [os.fsencode(os.path.abspath(file)) for file in files]
    states = [_read_state(key) for key in keys]
    now = time.time_ns()
    kept = _load(keys)
    digests = [digest if state and state == old else None for state, (old, digest) in zip(states, kept, strict=True)]
    missing = [i for i, digest in enumerate(digests) if digest is None and states[i]]
    chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
    fresh: list[tuple[bytes, str, bytes]] = []
    with ThreadPoolExecutor(8) as threads, LoggedProgress(len(missing), "Digests of files", "file") as bar:
        for chunk, read in zip(
            chunks, threads.map(lambda batch: [_digest(keys[i]) for i in batch], chunks), strict=True
        ):
            bar.update(len(chunk))
            for i, digest in zip(chunk, read, strict=True):
                digests[i], state = digest, states[i]
                if digest and state and now - _get_change_time(state) > _TICK:
                    fresh.append((keys[i], state, digest))
    if fresh:
        _save(fresh)
    return digests


def digest_file(path: Path) -> str:
    """Return the SHA-256 of the content of a file as hexadecimal digits, through the store.

    Args:
        path: File to read.

    Raises:
        OSError: The file cannot be read.
    """
    (digest,) = digest_files([path])
    if digest is None:
        raise OSError(f"{str(path)!r} cannot be read")
    return digest.hex()


def digest_folder(path: Path) -> str:
    """Return a SHA-256 of the names and contents of all files in a folder, without hidden ones.

    Args:
        path: Path of the folder; the digest does not depend on it.
    """
    files = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(path, followlinks=True)
        for name in names
        if not name.startswith(".")
    )
    names = [file.relative_to(path).as_posix() for file in files]
    return combine_digests(zip(names, digest_files(files), strict=True))


def combine_digests(rows: Iterable[tuple[str, bytes | None]]) -> str:
    """Return one SHA-256 over names and digests in the given order, as hexadecimal digits.

    Args:
        rows: Name and digest of each example; the digest is None if the file is missing.
    """
    sha = hashlib.sha256()
    for name, digest in rows:
        sha.update(name.encode("utf-8", "surrogateescape") + b"\0" + (digest or b"gone") + b"\n")
    return sha.hexdigest()


def _read_state(path: bytes) -> str | None:
    try:
        at = os.stat(path)
    except OSError:
        return None
    return f"{at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_ino}"


def _get_change_time(state: str) -> int:
    _, modified, changed, _ = map(int, state.split())
    return max(modified, changed)


def _digest(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _load(keys: Sequence[bytes]) -> list[tuple[str | None, bytes | None]]:
    """Return the stored state and digest of each file, or (None, None) where unknown or the store is damaged."""
    kept: dict[bytes, tuple[str, bytes]] = {}
    if STORE.is_file():
        with suppress(sqlite3.Error), closing(sqlite3.connect(STORE)) as store:
            for first in range(0, len(keys), _QUERY):
                some = keys[first : first + _QUERY]
                asked = f"select path, state, digest from files where path in ({','.join('?' * len(some))})"
                kept.update((path, (state, digest)) for path, state, digest in store.execute(asked, some))
    return [kept.get(key, (None, None)) for key in keys]


def _save(rows: Sequence[tuple[bytes, str, bytes]]) -> None:
    """Store states and digests, or do nothing if that fails; the files are then read again next time.

    Writing fails without permission, on a full disk, and on file systems without locks.
    """
    try:
        STORE.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(STORE)) as store, store:
            store.execute(_TABLE)
            store.executemany("insert or replace into files values (?, ?, ?)", rows)
    except sqlite3.OperationalError:
        pass
    except sqlite3.DatabaseError:  # damaged
        with suppress(OSError):
            STORE.unlink()
    except OSError:
        pass
