"""What a source of images knows beside its classes."""

from collections.abc import Sequence
from pathlib import Path

from sft_lightning.data.source import Source
from sft_lightning.data.vision.dicom_header import count_frames, find_patients
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges


class ImageSource(Source):
    """A set of images, some with labels.

    Attributes:
        image_shape: (C, H, W) when all images have one shape, else None.
        value_ranges: Values that are black and white in images of more than 8 bits, where the source says so.
    """

    image_shape: tuple[int, int, int] | None = None
    value_ranges: ValueRanges = UNKNOWN

    def find_groups(self, paths: Sequence[Path]) -> list[str] | None:
        """Return the patient of each DICOM file."""
        return find_patients(paths)

    def count_frames(self, paths: Sequence[Path]) -> list[int]:
        """Return the number of frames of each DICOM file, and 1 for others."""
        return [*map(count_frames, paths)]


def find_image_shape(source: Source) -> tuple[int, int, int] | None:
    """Return the shape of a source's images, (C, H, W), when all have one, else None.

    Args:
        source: Source of images; one that derives from `Source` alone may have `image_shape`, too, as in version 0.1.
    """
    shape: tuple[int, int, int] | None = getattr(source.original, "image_shape", None)
    return shape


def find_value_ranges(source: Source) -> ValueRanges:
    """Return the values that a source states to be black and white.

    Args:
        source: Source of images.
    """
    return source.original.value_ranges if isinstance(source.original, ImageSource) else UNKNOWN
