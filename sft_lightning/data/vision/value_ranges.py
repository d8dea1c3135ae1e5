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

from sft_lightning.utils.errors import InputError

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


def parse_ranges(stored: object, name: str) -> ValueRanges:
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


def serialize_ranges(ranges: ValueRanges) -> dict[str, list[float]]:
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


def _read_strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the first row and the values of each strip, as NumPy's copy of a whole image takes twice its memory.

    Args:
        image: Loaded, of one of `DEEP_MODES`. Values are unsigned where its TIFF says so.
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
        image: Loaded, of one of `DEEP_MODES`.

    Raises:
        OSError: No value is finite.
    """
    step = max(1, image.width * image.height // _SAMPLE)
    # Allocated at once: what each strip leaves behind would keep the memory of the strip from the next one.
    sample = np.empty(-(-image.width * image.height // step))
    filled, lowest, highest, is_finite = 0, math.inf, -math.inf, True
    for top, strip in _read_strips(image):
        values = strip.reshape(-1)
        some = values[-top * image.width % step :: step]  # each `step`th value of the whole image
        sample[filled : filled + len(some)] = some
        filled += len(some)
        if image.mode == "F" and not (mask := np.isfinite(values)).all():
            is_finite, values = False, values[mask]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if lowest > highest:
        raise OSError("none of its values is finite")
    if not is_finite:
        _warn_of_not_finite()
        sample = sample[np.isfinite(sample)]
    # None of the sample may be finite.
    low, high = np.quantile(sample, (_TAIL, 1 - _TAIL)) if sample.size else (lowest, highest)
    return ValueFacts(image.mode == "F", lowest, highest, float(low), float(high), is_finite)


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
    is_float = image.mode == "F"
    scale = ranges.floats if is_float else ranges.integers
    if scale is None:
        # Of one line, so that it is shown once, with the name of the file.
        warnings.warn(
            "no scale is known for its values of more than 8 bits: set value_range", RuntimeWarning, stacklevel=1
        )
    if scale is None and image.mode.startswith("I;16"):
        scale = 0.0, 65535.0
    if scale is None:
        own = choose_ranges([measure_values(image)])
        scale = own.floats or own.integers or (0.0, 1.0)
    low, high = scale
    tags = getattr(image, "tag_v2", None)
    white_is_zero = tags is not None and tags.get(262) == 0  # which Pillow applies to 8 bits only
    clear = image.info.get("transparency")  # one gray value of a 16-bit PNG that stands for nothing
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
