"""Find out why an image file cannot be read."""

from pathlib import Path

from sft_lightning.data.bad_examples import UNREADABLE, describe_read_error


def find_damage(path: Path) -> str | None:
    """Return why a file cannot be read as an image, or None if it can.

    Args:
        path: Path of the file.
    """
    from sft_lightning.data.vision.image_files import inspect_image  # imports this module

    try:
        inspect_image(path)
    except UNREADABLE as error:
        return describe_read_error(error)
    return None
