"""Choose one scale for the pixels of a data set, keep it in the checkpoint, and report on the files."""

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.issues import Finding
from sft_lightning.data.vision.image_files import DARK, FileFacts
from sft_lightning.data.vision.image_frames import describe_pages
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.value_ranges import (
    UNKNOWN,
    Range,
    ValueRanges,
    choose_ranges,
)
from sft_lightning.utils.errors import InputError

_LONG_SHARE = 0.05  # share of images that lose more than a third of their area above which a run reports it
_NAMED = 5  # names in a sentence
_DARK = 1 / 16  # share of the scale below which images are dark
_NO_DATA = (-32768.0, -9999.0, -99999.0, float(-(2**31)))  # values for missing data in geographic rasters


def merge_learned(own: ValueRanges, learned: ValueRanges) -> ValueRanges:
    """Merge the scale of this data with that of a training, which rules; say where they differ.

    Args:
        own: Scale that this data would have.
        learned: Scale of the training.
    """
    for kind, ours, theirs in zip(ValueRanges._fields, own, learned, strict=True):
        if ours is not None and theirs is not None and ours != theirs:
            rank_zero_info(
                f"Data: {kind} are scaled from {_format_range(theirs)} as in the training, not {_format_range(ours)}."
            )
    return ValueRanges(learned.integers or own.integers, learned.floats or own.floats)


def choose_scale(facts: list[FileFacts], known: ValueRanges, own: ValueRanges) -> ValueRanges:
    """Choose the scale of images of more than 8 bits: the window that all files state, or one of their values.

    Args:
        facts: Facts about the files of each part.
        known: Scale that was set or learned.
        own: Scale that the source itself states.
    """
    if known != UNKNOWN:
        return known
    windows = set.union(set(), *(one.windows for one in facts))
    if len(windows) == 1 and (window := windows.pop()) is not None:
        return ValueRanges(own.integers or window, own.floats or window)
    chosen = choose_ranges(value for one in facts for value in one.values)
    return ValueRanges(own.integers or chosen.integers, own.floats or chosen.floats)


def check_value_range(value_range: Range | None) -> ValueRanges:
    """Return the value ranges that a user set.

    Args:
        value_range: Values of black and white, or None.

    Raises:
        InputError: They are not two finite numbers with the second one larger.
    """
    if value_range is None:
        return UNKNOWN
    low, high = value_range
    if not -1e38 < low < high < 1e38:
        raise InputError(
            f"value_range is {list(value_range)}: give the value of black and a larger value of white, as in [0, 4095]"
        )
    return ValueRanges((low, high), (low, high))


def describe_values(facts: list[FileFacts], ranges: ValueRanges) -> list[Finding]:
    """Describe which values of images of more than 8 bits become black and white.

    Args:
        facts: Facts about the files of each collection.
        ranges: Scale of the data set.
    """
    findings = []
    values = [value for one in facts for value in one.values]
    for kind, scale, is_float in (("integers", ranges.integers, False), ("floating point", ranges.floats, True)):
        own = [value for value in values if value.is_float == is_float]
        if own and scale is not None:
            low, high = min(value.lowest for value in own), max(value.highest for value in own)
            message = (
                f"images of {kind} of more than 8 bits: {_format_range(scale)} becomes 0 to 255 in all of them "
                f"(values in the files go from {_format_range((low, high))}); set value_range for another scale"
            )
            findings.append(Finding("value_range", message))
            if max(value.high for value in own) - scale[0] < _DARK * (scale[1] - scale[0]):
                bright = _format_range((scale[0], max(value.high for value in own)))
                message = (
                    f"the images of {kind} are dark: 99.9% of their values go from {bright}, so a few bright ones set "
                    "the scale; set value_range"
                )
                findings.append(Finding("value_range", message))
            if low in _NO_DATA or low < -1e30:
                message = f"the lowest value, {low:g}, often stands for missing data"
                findings.append(Finding("value_range", f"{message}: set value_range to that of the rest"))
    windows = sorted({window for one in facts for window in one.windows if window is not None})
    if len(windows) > 1:
        message = (
            f"the files state {len(windows)} different windows, such as {_format_range(windows[0])} and "
            f"{_format_range(windows[-1])}; all are read by one scale, since brightness would else mean something "
            "else in each: set value_range to the window that you read them by"
        )
        findings.append(Finding("value_range", message))
    brightest = max((one.brightest for one in facts if one.brightest is not None), default=DARK)
    if brightest < DARK:
        message = (
            "the color images of 16 bits a channel are dark: Pillow reads the upper 8 bits, of which "
            f"{brightest} of 255 is the largest; if the data fills fewer bits, scale the files to 8 or 16 bits"
        )
        findings.append(Finding("value_range", message))
    not_finite = [name for one in facts for name in one.not_finite]
    findings += describe_pages([name for one in facts for name in one.paged])
    if not_finite:
        more = ", ..." if len(not_finite) > _NAMED else ""
        message = (
            f"{len(not_finite):,} of the images have values that are NaN (read as black) or infinite: "
            f"{', '.join(not_finite[:_NAMED])}{more}"
        )
        findings.append(Finding("not_finite", message, not_finite))
    return findings


def describe_long_images(facts: list[FileFacts], geometry: Geometry) -> list[Finding]:
    """Report images that lose much of their area to the central square, where they are more than 5%.

    Args:
        facts: Facts about the files of each collection.
        geometry: Geometry of the run.
    """
    count, long = sum(one.count for one in facts), sum(one.long for one in facts)
    if geometry.resize != "crop" or long <= _LONG_SHARE * count:
        return []
    message = (
        f"{long:,} of {count:,} images ({long / count:.0%}) lose more than a third of their area to the central "
        "square: set resize: pad to keep all of it"
    )
    return [Finding("cropped", message)]


def _format_range(values: Range) -> str:
    return " to ".join(f"{int(v):,}" if float(v).is_integer() and abs(v) < 1e12 else f"{v:.4g}" for v in values)
