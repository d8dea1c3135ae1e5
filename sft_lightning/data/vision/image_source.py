"""What a source of images knows beside its classes."""

from sft_lightning.data.source import Source
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges


class ImageSource(Source):
    """A set of images, some with labels.

    Attributes:
        image_shape: (C, H, W) when all images have one shape, else None.
        value_ranges: Values that are black and white in images of more than 8 bits, where the source says so.
    """

    image_shape: tuple[int, int, int] | None = None
    value_ranges: ValueRanges = UNKNOWN
