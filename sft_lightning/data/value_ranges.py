"""Bring pixels of more than 8 bits to 0 to 255 by one scale for all images of a data set.

Neither the type of a file nor one image says what is white: a 12-bit sensor fills a sixteenth of 16 bits, and a scale
by each image's own maximum would make the same tissue bright in one image and dark in the next.
"""

import math
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sft_lightning.errors import InputError

Range = tuple[float, float]
_DEPTHS = (1, 8, 10, 12, 14, 16)  # bits that sensors and masks have
_TOPS = (1.0, 255.0, 65535.0)  # usual values of white in floating point
_OVER = 1.1  # factor by which interpolation may exceed white
_FILLED = 1 / 16  # share of a usual range that data must reach to be of that range
_TAIL = 0.001  # share of an image's pixels on either side that may be outliers
_SAMPLE = 2**20  # pixels of an image whose quantiles are taken
_ROWS = 2**20  # pixels that are converted at a time


class ValueRanges(NamedTuple):
    """What becomes black and white, for integers of more than 8 bits and for floating point; None where unknown."""

    integers: Range | None = None
    floats: Range | None = None


UNKNOWN = ValueRanges()


def ranges_from(stored: object, name: str) -> ValueRanges:
    """Return ranges that a file holds: by kind, a list of two finite numbers, the second larger.

    Args:
        stored: From JSON or a checkpoint; None holds none.
        name: Of the file, for the message.

    Raises:
        InputError: It holds something else.
    """
    if stored is None:
        return UNKNOWN
    try:
        assert isinstance(stored, dict)
        ranges = ValueRanges(**{kind: (float(low), float(high)) for kind, (low, high) in stored.items()})
        assert all(one is None or (one[0] < one[1] and math.isfinite(one[1] - one[0])) for one in ranges)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"{name!r} has value_ranges {stored!r}, which are none: make the file again") from error
    return ranges


def stored_ranges(ranges: ValueRanges) -> dict[str, list[float]]:
    """Return ranges as a file holds them; nothing where none is known.

    Args:
        ranges: Scale of a data set.
    """
    return {kind: list(one) for kind, one in ranges._asdict().items() if one is not None}


class ValueFacts(NamedTuple):
    """The values of one image.

    Attributes:
        is_float: Whether they are of floating point.
        lowest: Smallest finite value.
        highest: Largest finite value.
        low: Value that all but one in a thousand exceed.
        high: Value that all but one in a thousand stay below.
        is_finite: Whether none is NaN or infinite.
    """

    is_float: bool
    lowest: float
    highest: float
    low: float
    high: float
    is_finite: bool


def deep_pixels(image: Image.Image) -> npt.NDArray[Any]:
    """Return the values of an image of more than 8 bits, unsigned where its TIFF says so.

    Args:
        image: Loaded, of one of `DEEP_MODES`.
    """
    pixels = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        return pixels.view(np.uint32)  # Pillow has no such mode: 3 billion would be negative
    return pixels


def measure_values(pixels: npt.NDArray[Any]) -> ValueFacts:
    """Measure the values of one image.

    Args:
        pixels: From `deep_pixels`.

    Raises:
        OSError: No value is finite.
    """
    is_float = pixels.dtype.kind == "f"
    sample = pixels.reshape(-1)[:: max(1, pixels.size // _SAMPLE)]
    is_finite = True
    if is_float:
        mask = np.isfinite(pixels)
        is_finite = bool(mask.all())
        if not is_finite:
            pixels, sample = pixels[mask], sample[np.isfinite(sample)]
            if not pixels.size:
                raise OSError("none of its values is finite")
            _warn_of_not_finite()
            sample = sample if sample.size else pixels
    low, high = np.quantile(sample.astype(np.float64), (_TAIL, 1 - _TAIL))
    return ValueFacts(is_float, float(pixels.min()), float(pixels.max()), float(low), float(high), is_finite)


def _warn_of_not_finite() -> None:
    """Warn from one line, so that one kind of warning is shown once, with the name of the file."""
    warnings.warn("some values are NaN, which is read as black, or infinite", stacklevel=1)


def choose_ranges(facts: Iterable[ValueFacts]) -> ValueRanges:
    """Choose one scale for all images.

    Args:
        facts: Values of each image of more than 8 bits.
    """
    facts = list(facts)
    integers = [one for one in facts if not one.is_float]
    floats = [one for one in facts if one.is_float]
    return ValueRanges(_choose_for_integers(integers), _choose_for_floats(floats))


def _choose_for_integers(facts: list[ValueFacts]) -> Range | None:
    """The smallest usual number of bits that holds all, or the range of the data where none does."""
    if not facts:
        return None
    if min(one.lowest for one in facts) >= 0:
        highest = max(one.highest for one in facts)
        for bits in _DEPTHS:
            if highest < 2**bits:
                return 0.0, 2.0**bits - 1
    return _range_of_data(facts)


def _choose_for_floats(facts: list[ValueFacts]) -> Range | None:
    if not facts:
        return None
    low, high = min(one.low for one in facts), max(one.high for one in facts)
    for top in _TOPS:
        if low >= (1 - _OVER) * top and top * _FILLED < high <= top * _OVER:
            return 0.0, top
    return _range_of_data(facts)


def _range_of_data(facts: list[ValueFacts]) -> Range:
    low, high = min(one.low for one in facts), max(one.high for one in facts)
    if low >= high:  # one value: black where it is 0, and otherwise not
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def to_eight_bits(image: Image.Image, ranges: ValueRanges) -> Image.Image:
    """Scale an image of more than 8 bits to gray of 8 bits, transparent where its file names a transparent value.

    Values outside the range are clipped; NaN becomes black.

    Args:
        image: Loaded, of one of `DEEP_MODES`.
        ranges: Scale of the data set. Where it is unknown, 16-bit integers have that of their type, and others that
            which their own values suggest.

    Raises:
        OSError: No value is finite.
    """
    pixels = deep_pixels(image)
    is_float = pixels.dtype.kind == "f"
    scale = ranges.floats if is_float else ranges.integers
    if scale is None:
        # Of one line, so that it is shown once, with the name of the file.
        warnings.warn(
            "no scale is known for its values of more than 8 bits: set value_range", RuntimeWarning, stacklevel=1
        )
    if scale is None and pixels.dtype.itemsize == 2:
        scale = 0.0, 65535.0
    if scale is None:
        own = choose_ranges([measure_values(pixels)])
        scale = own.floats or own.integers or (0.0, 1.0)
    low, high = scale
    made = np.empty(pixels.shape, np.uint8)
    rows = max(1, _ROWS // max(1, image.width))
    for top in range(0, len(pixels), rows):
        part = pixels[top : top + rows].astype(np.float64)
        if is_float and not np.isfinite(part).all():
            _warn_of_not_finite()
            part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        made[top : top + rows] = np.clip((part - low) / (high - low) * 255.0, 0, 255).round()
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(262) == 0:  # white is zero, which Pillow applies to 8 bits only
        np.subtract(255, made, out=made)
    gray = Image.fromarray(made)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one gray value of a 16-bit PNG that stands for nothing
        gray.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return gray
