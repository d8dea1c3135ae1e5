"""Find the image files below a folder, and count all files that are ignored."""

import os
from collections.abc import Iterator
from itertools import islice

from sft_lightning.data.bad_examples import format_path
from sft_lightning.data.vision.file_kinds import IgnoredFiles, has_image_content, is_named_image, is_system_folder
from sft_lightning.utils.errors import InputError

_FolderId = tuple[int, int]  # device and inode of a folder


def find_images(
    folder: str, max_sorted: int | None = None, ignored: IgnoredFiles | None = None
) -> Iterator[tuple[str, str]]:
    """Yield all files below a folder that are images by extension or, without a known extension, by content.

    Hidden files and system folders are ignored and counted. A folder that is named like an image and holds none, and a
    folder that cannot be listed, are yielded like images, so that reading them reports an error. A link back to a
    folder above it is not followed.

    Args:
        folder: Path of the folder.
        max_sorted: Number of entries of a folder that are sorted by name; the rest come in the order of the system.
            None sorts all.
        ignored: Counts of ignored files, which are added to.

    Yields:
        Name relative to the folder, as text, and path of a file.

    Raises:
        InputError: The folder itself cannot be listed.
    """
    try:
        yield from _walk(folder, "", frozenset(), max_sorted, IgnoredFiles() if ignored is None else ignored)
    except OSError as error:
        raise InputError(
            f"folder {format_path(folder)!r} cannot be listed ({error.strerror}): fix its permissions, or leave it out"
        ) from error


def _walk(
    folder: str, prefix: str, above: frozenset[_FolderId], max_sorted: int | None, ignored: IgnoredFiles
) -> Iterator[tuple[str, str]]:
    here = os.stat(folder)
    folder_id = here.st_dev, here.st_ino
    if folder_id in above:
        return
    with os.scandir(folder) as entries:
        for entry in _sort_first(entries, max_sorted):
            is_inside = is_folder(entry)
            if is_system_folder(entry.name):
                (ignored.add_folder if is_inside else ignored.add_file)(entry.name)
                continue
            name = prefix + format_path(entry.name)
            is_image = is_named_image(entry.name)
            if is_inside:
                try:
                    for item in _walk(entry.path, f"{name}/", above | {folder_id}, max_sorted, ignored):
                        is_image = False
                        yield item
                except OSError:
                    is_image = True
            elif not is_image and not (is_image := has_image_content(entry.path)):
                ignored.add_file(entry.name)
            if is_image:
                yield name, entry.path


def _sort_first(entries: Iterator[os.DirEntry[str]], max_sorted: int | None) -> Iterator[os.DirEntry[str]]:
    yield from sorted(islice(entries, max_sorted), key=lambda entry: entry.name)
    yield from entries


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one.

    Args:
        entry: Entry of a folder.
    """
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
