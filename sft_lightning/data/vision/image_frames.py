"""Frames of open image files, and what is said of volumes that are not read."""

from contextlib import suppress

from PIL import Image

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.frames import name_frame

VOLUMES, SLICES = (".nii", ".nii.gz"), "write their slices as DICOM, or as PNG of 16 bits"


def explain_format(path: str) -> str:
    """Return why a file that Pillow does not know is not read, and the remedy.

    Args:
        path: Path of the file; empty for bytes.
    """
    if path.lower().endswith(VOLUMES):
        return f"volumes of NIfTI are not read: {SLICES}"
    return "it is not an image of a known format"


def go_to_frame(image: Image.Image, number: int | None, path: str) -> None:
    """Go to a frame of DICOM; of other files, the first one is read.

    Args:
        image: Open image.
        number: Number of the frame, counted from 1; None for the only one.
        path: Path of the file.

    Raises:
        OSError: The frame does not exist, or the file has several and none is named.
    """
    if image.format != "DICOM":
        if number is not None:
            raise OSError(f"frames are read of DICOM, and it is {image.format}: write frame {number} to a file")
        return
    count = int(getattr(image, "n_frames", 1))
    if number is None and count > 1:
        raise OSError(f"it holds {count:,} frames: name one, such as '{show_path(name_frame(path, 1))}'")
    if number is not None and number > count:
        raise OSError(f"it has no frame {number:,}, but {count:,}: give a number from 1 to {count:,}")
    image.seek((number or 1) - 1)


def has_pages(image: Image.Image) -> bool:
    """Return whether a TIFF has pages after the first, which are not read.

    Args:
        image: Open image.
    """
    with suppress(Exception):  # a damaged later page
        return image.format == "TIFF" and int(getattr(image, "n_frames", 1)) > 1
    return True
