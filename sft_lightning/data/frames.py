"""Frames of files that hold several, each an example: `scan.dcm#12` is frame 12 of `scan.dcm`, counted from 1."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.issues import Finding
from sft_lightning.utils.errors import InputError

_FRAME = re.compile(r"(.+)#([1-9]\d{0,8})", re.DOTALL)


def name_frame(name: str, number: int) -> str:
    """Return the name or path of a frame.

    Args:
        name: Name or path of the file.
        number: Number of the frame, counted from 1.
    """
    return f"{name}#{number}"


def split_name(name: str) -> tuple[str, int | None]:
    """Return the name of a file and the number of its frame, or None for the number where the name has none.

    Args:
        name: Name or path, as text.
    """
    match = _FRAME.fullmatch(name) if "#" in name else None
    return (name, None) if match is None else (match[1], int(match[2]))


def split_path(path: str | Path) -> tuple[str, int | None]:
    """Return the path of a file and the number of its frame, or None for all of a file.

    A file that has the name of a frame is itself.

    Args:
        path: Path of a file or of a frame of one.
    """
    text = os.fspath(path)
    file, number = split_name(text)
    return (text, None) if number is None or os.path.lexists(text) else (file, number)


def remove_extension(name: str) -> str:
    """Return a name without extension, with the number of the frame: `a/scan#12` for `a/scan.dcm#12`.

    Args:
        name: Name or path of a file or of a frame of one.
    """
    file, number = split_name(name)
    stem, extension = os.path.splitext(file)
    return os.path.splitext(name)[0] if number is None or not extension else name_frame(stem, number)


def name_frames(name: str, count: int) -> list[str]:
    """Return the names of all frames of a file, or its own where it has one.

    Args:
        name: Name or path of the file.
        count: Number of its frames.
    """
    return [name] if count == 1 else [name_frame(name, number) for number in range(1, count + 1)]


def list_frames(path: str, count: int) -> list[str]:
    """Return the paths of all frames of a file, or its own where it has one.

    Args:
        path: Path of the file.
        count: Number of its frames.

    Raises:
        InputError: Another file has the name of a frame.
    """
    frames = name_frames(path, count)
    for frame in frames if count > 1 else []:
        if os.path.lexists(frame):
            raise InputError(f"file '{show_path(frame)}' has the name of a frame of '{show_path(path)}': rename it")
    return frames


def describe_frames(where: str, counts: Sequence[int], noun: str) -> list[Finding]:
    """Return a finding that each frame is an example, if files have several.

    Args:
        where: Name of the source.
        counts: Number of frames of each file.
        noun: Word for one example.
    """
    several = [count for count in counts if count > 1]
    if not several:
        return []
    files = "1 file" if len(several) == 1 else f"{len(several):,} files"
    hold = "holds" if len(several) == 1 else "hold"
    message = f"{files} in {where!r} {hold} {sum(several):,} frames, each of which is {noun}; a split has all or none"
    return [Finding("note", message)]
