"""Recordings that end before they should: libsndfile reads what is left of most of them without an error."""

import os
import re
from pathlib import Path
from typing import BinaryIO

# Sizes in the log of libsndfile that are larger than the file: of WAV, AIFF, AU, W64 and RF64. The sizes of the files
# themselves (`RIFF`, `FORM`) are not compared, since programs often write wrong ones.
_SIZES = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # bytes: programs that write to a pipe do not know the size, and write the largest one
_TAIL = 2**17  # bytes, in which the last page of Ogg begins: pages have at most 65,307
_TAGS = (b"Xing", b"Info")  # of an MP3 whose header holds its exact length
_HEAD = 2**14
_FRAME = 1152  # samples of a frame of MP3, the last of which an encoder may count in a way of its own


def is_cut_off(path: Path, log: str, count: int, decoded: int) -> bool:
    """Return whether a file is shorter than its header or its last page says.

    Args:
        path: Path of the file.
        log: Log of libsndfile about the file.
        count: Number of samples of each channel by its header.
        decoded: Number that could be decoded.
    """
    sizes = [(int(said), int(there)) for said, there in _SIZES.findall(log)]
    if any(there < said < _STREAMED for said, there in sizes):
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"OggS"):
            return not _ends_with_a_page(file)
    is_mp3 = head.startswith(b"ID3") or head[:1] == b"\xff"
    if is_mp3 and not any(tag in head for tag in _TAGS):
        return False  # the header is an estimate
    return decoded < count - (_FRAME if is_mp3 else 0)


def _ends_with_a_page(file: BinaryIO) -> bool:
    """Return whether the last page of an Ogg file is complete."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    lengths = page[27 : 27 + page[26]]
    return len(lengths) == page[26] and len(page) >= 27 + len(lengths) + sum(lengths)
