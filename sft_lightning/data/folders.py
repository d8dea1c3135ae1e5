"""Picture files below a folder, and what only looks like one: nothing is passed over in silence."""

import os
from collections.abc import Iterator
from itertools import islice

from sft_lightning.data.broken import EXTENSIONS, text
from sft_lightning.errors import InputError

_Place = tuple[int, int]  # device and number of a folder


def pictures(folder: str, sorted_: int | None = None) -> Iterator[tuple[str, str]]:
    """All files below a folder that are named like pictures; hidden ones are left out.

    So are a folder that is named like a picture and holds none, and a folder that cannot be listed: whoever reads them
    finds out that they are no pictures. A link that leads back to a folder above it is not followed.

    Args:
        folder: Where.
        sorted_: So many entries of a folder are held, to give them in the order of their names; the others come as the
            system tells them. None for all.

    Yields:
        The name relative to the folder, as text, and the path.

    Raises:
        InputError: The folder itself cannot be listed.
    """
    try:
        yield from _below(folder, "", frozenset(), sorted_)
    except OSError as error:
        raise InputError(
            f"folder {text(folder)!r} cannot be listed ({error.strerror}): mend its permissions, or leave it out"
        ) from error


def _below(folder: str, prefix: str, above: frozenset[_Place], held: int | None) -> Iterator[tuple[str, str]]:
    here = os.stat(folder)
    place = here.st_dev, here.st_ino
    if place in above:
        return
    with os.scandir(folder) as entries:
        for entry in _in_order(entries, held):
            if entry.name.startswith("."):
                continue
            name = prefix + text(entry.name)
            found = entry.name.lower().endswith(EXTENSIONS)
            if _is_folder(entry):
                try:
                    for item in _below(entry.path, f"{name}/", above | {place}, held):
                        found = False
                        yield item
                except OSError:
                    found = True
            if found:
                yield name, entry.path


def _in_order(entries: Iterator[os.DirEntry[str]], held: int | None) -> Iterator[os.DirEntry[str]]:
    yield from sorted(islice(entries, held), key=lambda entry: entry.name)
    yield from entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False
