"""Bring pixels of more than 8 bits to 0 to 255 by one scale for all images of a data set.

Neither the type of a file nor one image says what is white: a 12-bit sensor fills a sixteenth of 16 bits, and a scale
by each image's own maximum would make the same tissue bright in one image and dark in the next.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sft_lightning.data.vision.dicom import WHITE_IS_ZERO
from sft_lightning.utils.errors import InputError

Range = tuple[float, float]
_DEPTHS = (1, 8, 10, 12, 14, 16)  # bits that sensors and masks have
_TOPS = (1.0, 255.0, 65535.0)  # usual values of white in floating point
_OVER = 1.1  # factor by which interpolation may exceed white
_FILLED = 1 / 16  # share of a usual range that data must reach to be of that range
_TAIL = 0.001  # share of an image's pixels on either side that may be outliers
_SAMPLE = 2**20  # pixels of an image that quantiles are computed from
_ROWS = 2**20  # pixels converted at once


class ValueRanges(NamedTuple):
    """Values of black and white, for integers of more than 8 bits and for floating point; None where unknown."""

    integers: Range | None = None
    floats: Range | None = None


UNKNOWN = ValueRanges()


def parse_ranges(stored: object, name: str) -> ValueRanges:
    """Parse ranges stored in a file: for each kind, a list of two finite numbers, the second one larger.

    Args:
        stored: Value from JSON or a checkpoint, or None for unknown ranges.
        name: Name of the file, for the message.

    Raises:
        InputError: The value is invalid.
    """
    if stored is None:
        return UNKNOWN
    try:
        assert isinstance(stored, dict)
        ranges = ValueRanges(**{kind: (float(low), float(high)) for kind, (low, high) in stored.items()})
        assert all(one is None or (one[0] < one[1] and math.isfinite(one[1] - one[0])) for one in ranges)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"{name!r} has invalid value_ranges {stored!r}: make the file again") from error
    return ranges


def serialize_ranges(ranges: ValueRanges) -> dict[str, list[float]]:
    """Return ranges in the form that files store, without unknown ones.

    Args:
        ranges: Scale of a data set.
    """
    return {kind: list(one) for kind, one in ranges._asdict().items() if one is not None}


class ValueFacts(NamedTuple):
    """Values of one image.

    Attributes:
        is_float: Whether the values are floating point numbers.
        lowest: Smallest finite value.
        highest: Largest finite value.
        low: 0.1 percentile of the finite values.
        high: 99.9 percentile of the finite values.
        is_finite: Whether all values are finite.
    """

    is_float: bool
    lowest: float
    highest: float
    low: float
    high: float
    is_finite: bool


def _read_strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the first row and the values of each strip, as a NumPy copy of the full image would double the memory.

    Args:
        image: Loaded image of one of `DEEP_MODES`. Values are unsigned where its TIFF says so.
    """
    tags = getattr(image, "tag_v2", None)
    is_unsigned = image.mode == "I" and tags is not None and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    rows = max(1, _ROWS // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        yield top, strip.view(np.uint32) if is_unsigned else strip  # Pillow would make 3 billion negative


def measure_values(image: Image.Image) -> ValueFacts:
    """Measure the values of one image.

    Args:
        image: Loaded image of one of `DEEP_MODES`.

    Raises:
        OSError: No value is finite.
    """
    step = max(1, image.width * image.height // _SAMPLE)
    # Allocated once: small pieces kept from each strip would fragment the memory that strips are read into.
    sample = np.empty(-(-image.width * image.height // step))
    filled, lowest, highest, is_finite = 0, math.inf, -math.inf, True
    for top, strip in _read_strips(image):
        values = strip.reshape(-1)
        chosen = values[-top * image.width % step :: step]  # every `step`th value of the image
        sample[filled : filled + len(chosen)] = chosen
        filled += len(chosen)
        if image.mode == "F" and not (mask := np.isfinite(values)).all():
            is_finite, values = False, values[mask]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if lowest > highest:
        raise OSError("it has no finite values")
    if not is_finite:
        _warn_of_not_finite()
        sample = sample[np.isfinite(sample)]
    # None of the sample may be finite.
    low, high = np.quantile(sample, (_TAIL, 1 - _TAIL)) if sample.size else (lowest, highest)
    return ValueFacts(image.mode == "F", lowest, highest, float(low), float(high), is_finite)


def _warn_of_not_finite() -> None:
    """Warn of values that are not finite; a single call site makes Python show the warning once."""
    warnings.warn("some values are NaN, which is read as black, or infinite", stacklevel=1)


def choose_ranges(facts: Iterable[ValueFacts]) -> ValueRanges:
    """Choose one scale for all images.

    Args:
        facts: Values of each image of more than 8 bits.

    Returns:
        Value ranges for integers and floating point.
    """
    facts = list(facts)
    integers = [one for one in facts if not one.is_float]
    floats = [one for one in facts if one.is_float]
    return ValueRanges(_choose_for_integers(integers), _choose_for_floats(floats))


def _choose_for_integers(facts: list[ValueFacts]) -> Range | None:
    """Return the range of the smallest usual bit depth that holds all values, or that of the data where none does."""
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
    if low >= high:  # a single value: black if it is 0
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def to_eight_bits(image: Image.Image, ranges: ValueRanges) -> Image.Image:
    """Scale an image of more than 8 bits to gray of 8 bits, transparent where its file names a transparent value.

    Values outside the range are clipped; NaN becomes black.

    Args:
        image: Loaded image of one of `DEEP_MODES`.
        ranges: Scale of the data set. Where it is unknown, 16-bit integers get the scale of their type, and other
            values a scale from the image itself.

    Raises:
        OSError: No value is finite.
    """
    is_float = image.mode == "F"
    scale = ranges.floats if is_float else ranges.integers
    if scale is None:
        # A single call site makes Python show the warning once.
        warnings.warn(
            "no scale is known for its values of more than 8 bits: set value_range", RuntimeWarning, stacklevel=1
        )
    if scale is None and image.mode.startswith("I;16"):
        scale = 0.0, 65535.0
    if scale is None:
        suggested = choose_ranges([measure_values(image)])
        scale = suggested.floats or suggested.integers or (0.0, 1.0)
    low, high = scale
    tags = getattr(image, "tag_v2", None)
    # Pillow applies this tag of a TIFF only to 8 bits.
    white_is_zero = (tags is not None and tags.get(262) == 0) or WHITE_IS_ZERO in image.info
    clear = image.info.get("transparency")  # the gray value of a 16-bit PNG that is transparent
    gray = Image.new("LA" if isinstance(clear, int) else "L", image.size)
    for top, strip in _read_strips(image):
        part = strip.astype(np.float64)
        if is_float and not np.isfinite(part).all():
            _warn_of_not_finite()
            part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        made = np.clip((part - low) / (high - low) * 255.0, 0, 255).round().astype(np.uint8)
        one = Image.fromarray(255 - made if white_is_zero else made)
        if isinstance(clear, int):
            one.putalpha(Image.fromarray(np.where(strip == clear, 0, 255).astype(np.uint8)))
        gray.paste(one, (0, top))
    return gray
