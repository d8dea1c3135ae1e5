"""Find the image files below a folder."""

from collections.abc import Iterator

from sft_lightning.data.listed_files import IgnoredFiles, find_files
from sft_lightning.data.vision.file_kinds import IMAGES


def find_images(
    folder: str, max_sorted: int | None = None, ignored: IgnoredFiles | None = None
) -> Iterator[tuple[str, str]]:
    """Yield name and path of all image files below a folder, with the arguments of `find_files`."""
    return find_files(folder, IMAGES, max_sorted, ignored)
