"""Open image files so that whatever is wrong with one is an OSError with a reason, and warnings name the file."""

import os
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from PIL import Image

from sft_lightning.data.vision.file_checks import UNREADABLE, check_file, describe_read_error, show_path
from sft_lightning.data.vision.value_ranges import ValueFacts, measure_values
from sft_lightning.utils.atomic import hold_lock
from sft_lightning.utils.progress_lines import LoggedProgress

LARGE = 2**25  # pixels; larger images are converted in strips, and one at a time on a machine
LONG = 1.5  # longer side by shorter side, from which on a central square loses more than a third of the area
DARK = 64  # of 255: what data of 14 or fewer of 16 bits stays below
_COLOR = ("RGB", "RGBA")
# Color images of other modes are refused: Pillow converts them to neither gray nor RGB.
READABLE_MODES = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
)
DEEP_MODES = frozenset(("I;16", "I;16B", "I;16L", "I;16N", "I", "F"))


@contextmanager
def open_image_file(source: str | Path | BytesIO) -> Iterator[Image.Image]:
    """Open an image file for decoding inside the block.

    Pillow gets a file object even for a path: files that it opens by path are mapped where they are not compressed, and
    Pillow 11.3 to 13 turns those by EXIF wrongly.

    Args:
        source: Path of the file, or its bytes.

    Raises:
        OSError: The file is missing, empty, too large, or anything in the block failed because of its content.
    """
    name = None if isinstance(source, BytesIO) else show_path(source)
    if not isinstance(source, BytesIO):
        check_file(source)
    try:
        with (
            _prefix_warnings(name),
            nullcontext(source) if isinstance(source, BytesIO) else Path(source).open("rb") as raw,
            Image.open(raw) as image,
        ):
            tags = getattr(image, "tag_v2", {})
            if tags.get(339, (1,))[0] == 2 and tags.get(258, (0,))[0] == 8:
                raise OSError("its pixels are signed integers of 8 bits, which Pillow reads as unsigned: convert it")
            _check_bands(image)
            if image.mode not in READABLE_MODES | DEEP_MODES:
                raise OSError(f"its pixels are of the mode {image.mode!r}, which cannot be converted to RGB")
            yield image
    except (OSError, Warning):  # a warning where the user makes errors of warnings
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise OSError(f"it has more than {limit:.0f} megapixels, the limit of Pillow: make it smaller") from error
    except MemoryError as error:
        raise OSError("there is not enough memory to decode it") from error
    except (SyntaxError, ValueError) as error:  # Pillow's usual ones, whose text speaks for itself
        raise OSError(str(error) or type(error).__name__) from error
    except Exception as error:  # decoders raise anything: NotImplementedError, struct.error, IndexError, ...
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise OSError(f"its content cannot be decoded ({said})") from error


_COLOR_BANDS: dict[object, int] = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # of a TIFF, by its color space
_ALPHA = (1, 2, 999)  # values of ExtraSamples


def _check_bands(image: Image.Image) -> None:
    """Warn of bands of a TIFF that are neither color nor transparency, such as near infrared.

    Raises:
        OSError: Pillow would read other values.
    """
    tags = getattr(image, "tag_v2", {})
    bands, kinds = tags.get(277, 1), tags.get(338, ())
    extra = bands - _COLOR_BANDS.get(tags.get(262), bands)
    left_out = extra - sum(kind in _ALPHA for kind in kinds[:extra])
    if extra > 0 and tags.get(284) == 2 and image.mode in ("LA", "La", "PA"):
        raise OSError("its gray and its transparency lie in separate planes, which Pillow reads wrongly: convert it")
    if left_out > 0 and not kinds and image.mode == "RGBA":
        warnings.warn(f"the last of its {bands} bands is read as transparency, which it does not say", stacklevel=1)
    elif left_out > 0:
        warnings.warn(
            f"{left_out} of its {bands} bands {'is' if left_out == 1 else 'are'} left out, as only those of color and "
            "transparency are read",
            stacklevel=1,
        )


@contextmanager
def limit_large_images(size: tuple[int, int]) -> Iterator[None]:
    """Decode at most one large image at a time, so that eight workers need not hold eight of them.

    Args:
        size: Width and height in pixels; images of at most `LARGE` pixels do not wait.
    """
    if size[0] * size[1] <= LARGE:
        yield
        return
    with ExitStack() as stack:
        try:
            # A file of the user's own: others may not write to it.
            path = Path(tempfile.gettempdir(), f"sft-lightning-large-image-{getattr(os, 'getuid', int)()}.lock")
            stack.enter_context(hold_lock(stack.enter_context(path.open("ab")), lambda: None))
        except OSError:  # no folder for temporary files: memory is not bounded then, and the result is the same
            pass
        yield


_CHUNK = struct.Struct(">I4s")
_READ = 2**20
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def is_sound_png(path: Path) -> bool:
    """Return whether the checksums of a PNG's chunks hold and it is not animated; otherwise it needs decoding to tell.

    Args:
        path: Path of the file.
    """
    with path.open("rb") as file:
        file.seek(8)
        has_pixels = False
        while len(head := file.read(8)) == 8:
            left, kind = _CHUNK.unpack(head)
            if kind in _ANIMATION:
                return False
            has_pixels = has_pixels or bool(kind == b"IDAT")
            check = zlib.crc32(kind)
            while left and (part := file.read(min(left, _READ))):
                check, left = zlib.crc32(part, check), left - len(part)
            if left or file.read(4) != check.to_bytes(4, "big"):
                return False
            if kind == b"IEND":
                return has_pixels
    return False


_BARE = (0xFF01, *range(0xFFD0, 0xFFD9))  # markers without a length
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended and progressive
_NEEDED = {0xFFDB, 0xFFC4}  # quantization and Huffman tables


def is_sound_jpeg(path: Path) -> bool:
    """Return whether the segments before a JPEG's pixels are those that every decoder takes; otherwise decoding tells.

    Args:
        path: Path of the file.
    """
    with path.open("rb") as file:
        seen: set[int] = set()
        while len(head := file.read(2)) == 2:
            marker = int.from_bytes(head, "big")
            if marker in _BARE:
                continue
            length = int.from_bytes(file.read(2), "big")
            if marker < 0xFF02 or length < 2:
                return False
            if marker == 0xFFDA:  # pixels
                return seen >= _NEEDED and not seen.isdisjoint(_FRAMES)
            seen.add(marker)
            file.seek(length - 2, 1)
    return False


_SMALL = 2**16  # pixels that are decoded nearly as fast as their checksums are made
# The last bytes of a whole file, by format: a cheap sign that nothing was cut off.
_TAILS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class ImageFacts(NamedTuple):
    """What one look at a file says of its image.

    Attributes:
        width: In pixels, before EXIF turns it.
        height: In pixels, before EXIF turns it.
        values: Of an image of more than 8 bits, where they were asked for.
        brightest: Largest value, of 255, of a color image of 16 bits a channel, where it was asked for.
        has_pages: Whether it is a TIFF of more than one image.
    """

    width: int
    height: int
    values: ValueFacts | None
    brightest: int | None = None
    has_pages: bool = False


@dataclass
class FileFacts:
    """What the files of a part have in common, as far as one look at each says.

    Attributes:
        count: Number of images that can be read.
        long: Number of those that are longer than 1.5 times their width, or wider than 1.5 times their height.
        values: Of the images of more than 8 bits, where they were measured.
        not_finite: Files of images with NaN or infinite values.
        paged: Files of TIFFs of more than one image, of which the first is read.
        brightest: Largest value, of 255, of color images of 16 bits a channel; None where there is none.
    """

    count: int = 0
    long: int = 0
    values: list[ValueFacts] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    paged: list[str] = field(default_factory=list)
    brightest: int | None = None

    def add(self, path: Path, facts: ImageFacts) -> None:
        """Count one image.

        Args:
            path: Path of its file.
            facts: From `inspect_image`.
        """
        self.count += 1
        self.long += max(facts.width, facts.height) > LONG * min(facts.width, facts.height)
        if facts.brightest is not None:
            self.brightest = max(self.brightest or 0, facts.brightest)
        if facts.has_pages:
            self.paged.append(show_path(path))
        if facts.values is not None:
            self.values.append(facts.values)
            if not facts.values.is_finite:
                self.not_finite.append(show_path(path))


def inspect_images(paths: Sequence[Path], measures: bool = True) -> tuple[FileFacts, dict[int, str]]:
    """Look at many files.

    Args:
        paths: Paths of the files.
        measures: Whether to measure the values of images of more than 8 bits. Of 16-bit integers only as many are
            measured as it takes to see that they use their whole range.

    Returns:
        What can be said of the readable ones, and the reason why each other cannot be read, by its position.
    """
    has_full_range = has_bright_color = False

    def needs_values(mode: str) -> bool:
        enough = has_full_range if mode.startswith("I;16") else has_bright_color and mode in _COLOR
        return measures and not enough

    def look(path: Path) -> ImageFacts | str:
        nonlocal has_full_range, has_bright_color
        try:
            facts = inspect_image(path, needs_values)
        except UNREADABLE as error:
            return describe_read_error(error)
        has_bright_color |= facts.brightest is not None and facts.brightest >= DARK
        has_full_range |= facts.values is not None and not facts.values.is_float and facts.values.high >= 2**14
        return facts

    found, unreadable = FileFacts(), {}
    with ThreadPoolExecutor(max_workers=8) as pool, LoggedProgress(len(paths), "Checking files", "file") as bar:
        for position, facts in enumerate(pool.map(look, paths)):
            bar.update()
            if isinstance(facts, str):
                unreadable[position] = facts
            else:
                found.add(paths[position], facts)
    return found, unreadable


def inspect_image(path: Path, needs_values: Callable[[str], bool] = lambda mode: False) -> ImageFacts:
    """Look at a file as far as it takes to find out whether it can be decoded.

    The header is parsed. A JPEG must have the usual segments and end as JPEGs do, and the checksums of a PNG must hold;
    where this is not so, and in every other format, the image is decoded.

    Args:
        path: Path of the file.
        needs_values: Whether to measure the values of an image of more than 8 bits and this mode.

    Raises:
        OSError: The image cannot be decoded, for the reason in the message.
    """
    with open_image_file(path) as image:
        if "exif" in image.info:
            image.getexif()  # Pillow warns here of what is damaged in it, and not in each worker
        if image.format == "PNG" and image.mode == "P" and image.palette is None:
            raise OSError("it has no palette")
        # Pillow reads the upper 8 of 16 bits of a color, whatever the data fills.
        is_halved = image.mode in _COLOR and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        wants = (is_halved or image.mode in DEEP_MODES) and needs_values(image.mode)
        values, brightest = None, None
        if wants or not _is_sound(path, image):
            with limit_large_images(image.size):
                image.load()
                if wants and is_halved:
                    brightest = max(high for _, high in image.getextrema()[:3])  # type: ignore[misc]
                elif wants:
                    values = measure_values(image)
        return ImageFacts(*image.size, values, brightest, _has_pages(image))


def _has_pages(image: Image.Image) -> bool:
    try:
        return image.format == "TIFF" and int(getattr(image, "n_frames", 1)) > 1
    except Exception:  # whatever Pillow makes of a later page, which is not read
        return True


def _is_sound(path: Path, image: Image.Image) -> bool:
    tail = _TAILS.get(image.format or "")
    if tail is None:
        return False
    with path.open("rb") as raw:
        raw.seek(-min(16, path.stat().st_size), 2)
        if not raw.read().endswith(tail):
            return False
    if image.format == "PNG":  # a small one is decoded, too: its pixels may be damaged while the checksums are right
        return image.width * image.height > _SMALL and is_sound_png(path)
    layers, tables = getattr(image, "layer", []), getattr(image, "quantization", {})
    return all(layer[3] in tables for layer in layers) and is_sound_jpeg(path)


# --- warnings

_lock = threading.Lock()
_current = threading.local()
_inside = 0  # blocks that are open, in all threads
_show_before: Any = None
_shown: set[tuple[type[Warning], str, int]] = set()


@contextmanager
def _prefix_warnings(name: str | None) -> Iterator[None]:
    """Put the name of the file before what Pillow warns of inside, and show each kind of warning once.

    `warnings.catch_warnings` would not do: it is not safe in threads.
    """
    global _inside, _show_before
    outer, _current.name = getattr(_current, "name", None), name
    with _lock:
        if not _inside:
            _show_before, warnings.showwarning = warnings.showwarning, _show_warning
        _inside += 1
    try:
        yield
    finally:
        _current.name = outer
        with _lock:
            _inside -= 1
            if not _inside and warnings.showwarning is _show_warning:
                warnings.showwarning = _show_before


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    name = getattr(_current, "name", None)
    if name is not None:
        if (category, filename, lineno) in _shown:
            return
        _shown.add((category, filename, lineno))
        message = category(f"image '{name}': {' '.join(str(message).split())}")
    _show_before(message, category, filename, lineno, file, line)
