"""Frames of open image files, and what is said of volumes and pages that are not read."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.frames import name_frame
from sft_lightning.data.issues import Finding
from sft_lightning.data.vision.dicom_header import OTHER_EXTENSIONS

VOLUMES, SLICES = (".nii", ".nii.gz"), "write their slices as DICOM, or as PNG of 16 bits"
# Frames of DICOM are examples, an MPO ends with previews, and a PSD begins with the picture that its layers make.
_OF_ONE_IMAGE = ("DICOM", "MPO", "PSD")
_NAMED = 5  # names in a sentence


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
        OSError: The frame does not exist, the file has several and none is named, or its name hides that it is DICOM,
            so that neither its patient nor its frames were looked for.
    """
    if image.format == "DICOM" and (suffix := Path(path).suffix).lower() in OTHER_EXTENSIONS:
        raise OSError(f"it is DICOM and named {suffix!r}: rename it, so that its patient is found")
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


def count_pages(image: Image.Image) -> int:
    """Return the number of images of a file of which the first alone is read: pages of a TIFF, frames of an animation.

    Args:
        image: Open image.
    """
    try:
        return 1 if image.format in _OF_ONE_IMAGE else int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later page
        return 2


def describe_pages(paths: Sequence[str]) -> list[Finding]:
    """Return a finding that the first image alone is read of files that hold several.

    Args:
        paths: Paths of these files.
    """
    if not paths:
        return []
    files = "1 file holds" if len(paths) == 1 else f"{len(paths):,} files hold"
    more = ", ..." if len(paths) > _NAMED else ""
    message = (
        f"{files} several images (pages of a TIFF, frames of an animation), of which the first alone is read: "
        f"{', '.join(paths[:_NAMED])}{more}; write the others as files of their own if they matter"
    )
    return [Finding("extra_frames", message, paths)]
