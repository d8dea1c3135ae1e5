"""Encodings of files of texts: by their mark, UTF-8, or Windows-1252; others are refused, not read as wrong letters."""

import os
import stat
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from sft_lightning.data.table_header import find_mark
from sft_lightning.utils.errors import InputError

_UNUSED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # bytes that Windows-1252 does not have
_FEW = 8  # bytes beyond ASCII, too few to say more about
_MOST = 10_000  # lines whose bytes are counted


class Guess(NamedTuple):
    """Encoding of a file.

    Attributes:
        encoding: Name of the encoding.
        line: Number of the first line that is not UTF-8; 0 if all are.
        letter: The letter that it has there in Windows-1252.
    """

    encoding: str
    line: int = 0
    letter: str = ""


def guess_encoding(lines: Iterable[bytes], where: str) -> Guess:
    """Return the encoding of a file.

    Texts in Windows-1252 have letters beyond ASCII among others. Where most of these stand next to each other, as in
    Cyrillic, Greek, Japanese or Chinese texts, another encoding was meant.

    Args:
        lines: Lines of the file.
        where: Kind and name of the file, for messages.

    Raises:
        InputError: It is UTF-8 with damage, or in an encoding that is not known.
    """
    first, letter, good, bad, high, paired, has_unused = 0, "", 0, 0, 0, 0, False
    for number, line in enumerate(lines, 1):
        if number == 1 and (mark := find_mark(line[:3])):
            return Guess(mark)
        if line.isascii():
            continue
        try:
            line.decode()
            good += 1
            continue
        except UnicodeDecodeError as error:
            place = error.start
        bad += 1
        first, letter = (first, letter) if first else (number, line[place : place + 1].decode("cp1252", "replace"))
        if bad <= _MOST:
            high += sum(byte > 127 for byte in line)
            paired += sum(a > 127 and b > 127 and a != b for a, b in pairwise(line))
            has_unused |= any(byte in line for byte in _UNUSED)
    if not first:
        return Guess("utf-8")
    if good >= bad:
        raise InputError(f"{where} is UTF-8 text that is damaged in line {first} ({letter!r}): correct that line")
    if has_unused or (high > _FEW and paired > high / 2):
        raise InputError(
            f"{where} is neither UTF-8 nor Windows-1252 (line {first}): convert it from the encoding of the program "
            "that wrote it, as by `iconv -f SHIFT-JIS -t UTF-8`"
        )
    return Guess("cp1252", first, letter)


def read_text(path: Path) -> tuple[str, bool]:
    """Return the text of a file, and whether it was read as Windows-1252.

    Args:
        path: Path of the file; an empty one is an empty text.

    Raises:
        InputError: It cannot be read, or is in another encoding.
    """
    where = f"file {str(path)!r}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise InputError(f"{where} is not a file with a text: remove it")
        content = path.read_bytes()
        guess = guess_encoding(content.splitlines(keepends=True), where)
        text = content.decode(guess.encoding, "replace" if guess.encoding == "cp1252" else "strict")
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error}): correct or remove it") from error
    except UnicodeError as error:
        raise InputError(f"{where} is not text ({error}): save it as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{where} has a NUL byte, so that it is not text in UTF-8: convert or remove it")
    return text, guess.encoding == "cp1252"
