"""What all caches of decoded files share: their key, room on the disk, and what the user is asked to do."""

import hashlib
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.digests import combine_digests, digest_files
from sft_lightning.utils.errors import InputError


def make_key(settings: object, paths: Sequence[Path], ids: Sequence[str]) -> str:
    """Return the SHA-256 of all that decoded files depend on.

    Args:
        settings: Versions of the decoders, and how files are decoded; their `repr` counts.
        paths: Paths of the files, whose content counts.
        ids: Names of the files, in the order in which they are stored.
    """
    key = hashlib.sha256(repr(settings).encode())
    key.update(combine_digests(zip(ids, digest_files(paths), strict=True)).encode())
    return key.hexdigest()


def reserve_room(folder: Path, need: int, count: int, size: str, plural: str) -> None:
    """Say what will be stored, if the disk has room for it.

    Args:
        folder: Folder of caches.
        need: Number of bytes.
        count: Number of files.
        size: What follows their number in a sentence, such as ` of 3 x 24 x 24 bytes`; may be empty.
        plural: Word for several of them.

    Raises:
        InputError: The disk is too full.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"cache {str(folder)!r} needs {_format_gigabytes(need)} for {count:,} {plural}{size}, and "
            f"{_format_gigabytes(free)} are free there: free space, name another folder, or set cache: null"
        )
    rank_zero_info(
        f"Data: {count:,} files are decoded once and kept in {str(folder)!r}: {_format_gigabytes(need)} "
        f"({_format_gigabytes(free)} are free there)."
    )


def refuse_folder(folder: Path, error: OSError) -> InputError:
    """Return the error for a folder of caches that cannot be written to.

    Args:
        folder: Folder of caches.
        error: What the system says.
    """
    return InputError(
        f"cache {str(folder)!r} cannot be written ({error.strerror or error}): free space or change its permissions, "
        "or name another folder"
    )


def report_wait() -> None:
    """Say that another process is making the cache."""
    rank_zero_info("Data: another process decodes these files; waiting for it.")


def report_damage(path: Path) -> None:
    """Say that content differs from its checksum.

    Args:
        path: File of the cache.
    """
    warnings.warn(f"{str(path)!r} is damaged: its files are decoded again", stacklevel=3)


def _format_gigabytes(count: int) -> str:
    return f"{count / 1e9:,.{1 if count >= 1e9 else 3}f} GB"
