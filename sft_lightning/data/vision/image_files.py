"""Open and inspect image files: any defect is an OSError with a reason, and warnings name the file."""

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

from PIL import Image, UnidentifiedImageError

from sft_lightning.data.bad_examples import UNREADABLE, check_file, describe_read_error, show_path
from sft_lightning.data.frames import split_path
from sft_lightning.data.vision.dicom import WINDOW
from sft_lightning.data.vision.image_frames import count_pages, explain_format, go_to_frame
from sft_lightning.data.vision.value_ranges import ValueFacts, measure_values
from sft_lightning.utils.atomic import hold_lock
from sft_lightning.utils.progress_lines import LoggedProgress

LARGE = 2**25  # pixels; larger images are converted in strips, and one at a time per machine
LONG = 1.5  # aspect ratio above which a central square loses more than a third of the area
_PER_TASK = 32  # files that a thread takes at a time: handing them over one by one takes as long as looking at them
DARK = 64  # of 255; data of at most 14 of 16 bits stays below
_COLOR = ("RGB", "RGBA")
# Color images of other modes are refused: Pillow converts them to neither gray nor RGB.
READABLE_MODES = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
)
DEEP_MODES = frozenset(("I;16", "I;16B", "I;16L", "I;16N", "I", "F"))


def is_gray_mode(mode: str) -> bool:
    """Return whether images of a mode of Pillow have no color; palettes may have some.

    Args:
        mode: Mode, such as `L` or `I;16`.
    """
    return mode in ("1", "L", "LA", "F") or mode.startswith("I")


@contextmanager
def open_image_file(source: str | Path | BytesIO) -> Iterator[Image.Image]:
    """Open an image file for decoding inside the block.

    Pillow gets a file object even for a path: files that it opens by path are mapped where they are not compressed, and
    Pillow 11.3 to 13 turns those by EXIF wrongly.

    Args:
        source: Path of the file or of a frame of one, or its bytes.

    Raises:
        OSError: The file is missing, empty, too large, or anything in the block failed because of its content.
    """
    name, file, frame = None, "", None
    if not isinstance(source, BytesIO):
        name, (file, frame) = show_path(source), split_path(source)
        check_file(file)
    try:
        with (
            _prefix_warnings(name),
            nullcontext(source) if isinstance(source, BytesIO) else Path(file).open("rb") as raw,
            Image.open(raw) as image,
        ):
            go_to_frame(image, frame, file)
            tags = getattr(image, "tag_v2", {})
            if tags.get(339, (1,))[0] == 2 and tags.get(258, (0,))[0] == 8:
                raise OSError("its pixels are signed integers of 8 bits, which Pillow reads as unsigned: convert it")
            _check_bands(image)
            if image.mode not in READABLE_MODES | DEEP_MODES:
                raise OSError(f"its pixels are of the mode {image.mode!r}, which cannot be converted to RGB")
            yield image
    except UnidentifiedImageError as error:
        raise OSError(explain_format(file)) from error
    except (OSError, Warning):  # a Warning is raised where the user turns warnings into errors
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise OSError(f"it has more than {limit:.0f} megapixels, the limit of Pillow: make it smaller") from error
    except MemoryError as error:
        raise OSError("there is not enough memory to decode it") from error
    except (SyntaxError, ValueError) as error:  # Pillow's usual errors, with clear messages
        raise OSError(str(error) or type(error).__name__) from error
    except Exception as error:  # decoders raise anything: NotImplementedError, struct.error, IndexError, ...
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise OSError(f"its content cannot be decoded ({text})") from error


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
        warnings.warn(
            f"the last of its {bands} bands is read as transparency, although the file does not say so", stacklevel=1
        )
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
            # One lock file per user: others may not write to it.
            path = Path(tempfile.gettempdir(), f"sft-lightning-large-image-{getattr(os, 'getuid', int)()}.lock")
            stack.enter_context(hold_lock(stack.enter_context(path.open("ab")), lambda: None))
        except OSError:  # no folder for temporary files: go on without the limit on memory
            pass
        yield


_CHUNK = struct.Struct(">I4s")
_READ = 2**20
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def is_sound_png(path: Path) -> bool:
    """Return whether a PNG is not animated and its checksums match; False means that only decoding can tell.

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
    """Return whether a JPEG has the segments that every decoder needs; False means that only decoding can tell.

    Args:
        path: Path of the file.
    """
    with path.open("rb") as file:
        markers: set[int] = set()
        while len(head := file.read(2)) == 2:
            marker = int.from_bytes(head, "big")
            if marker in _BARE:
                continue
            length = int.from_bytes(file.read(2), "big")
            if marker < 0xFF02 or length < 2:
                return False
            if marker == 0xFFDA:  # pixels
                return markers >= _NEEDED and not markers.isdisjoint(_FRAMES)
            markers.add(marker)
            file.seek(length - 2, 1)
    return False


_SMALL = 2**16  # pixels; smaller images are decoded almost as fast as their checksums are computed
# Last bytes of a complete file, by format: a cheap test for truncated files.
_TAILS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class ImageFacts(NamedTuple):
    """Facts about an image from inspecting its file.

    Attributes:
        width: Width in pixels, before the EXIF rotation.
        height: Height in pixels, before the EXIF rotation.
        values: Values of an image of more than 8 bits, if requested.
        brightest: Largest value, of 255, of a color image of 16 bits per channel, if requested.
        pages: Number of images of the file, of which the first is read.
        window: Values that the file states to be black and white, if requested.
    """

    width: int
    height: int
    values: ValueFacts | None
    brightest: int | None = None
    pages: int = 1
    window: tuple[float, float] | None = None


@dataclass
class FileFacts:
    """Facts about the files of a collection of images.

    Attributes:
        count: Number of readable images.
        long: Number of readable images with an aspect ratio above 1.5.
        values: Values of the images of more than 8 bits, where measured.
        not_finite: Paths of images with NaN or infinite values.
        paged: Paths of files of more than one image, of which only the first is read.
        brightest: Largest value, of 255, of the color images of 16 bits per channel; None without such images.
        windows: Black and white as images of more than 8 bits state them, None for those that do not, where measured.
    """

    count: int = 0
    long: int = 0
    values: list[ValueFacts] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    paged: list[str] = field(default_factory=list)
    brightest: int | None = None
    windows: set[tuple[float, float] | None] = field(default_factory=set)

    def add(self, path: Path, facts: ImageFacts) -> None:
        """Add the facts of one image.

        Args:
            path: Path of the file.
            facts: Facts from `inspect_image`.
        """
        self.count += 1
        self.long += max(facts.width, facts.height) > LONG * min(facts.width, facts.height)
        if facts.brightest is not None:
            self.brightest = max(self.brightest or 0, facts.brightest)
        if facts.pages > 1:
            self.paged.append(show_path(path))
        if facts.values is not None:
            self.values.append(facts.values)
            self.windows.add(facts.window)
            if not facts.values.is_finite:
                self.not_finite.append(show_path(path))


def inspect_images(paths: Sequence[Path], measures: bool = True) -> tuple[FileFacts, dict[int, str]]:
    """Inspect image files in parallel.

    Args:
        paths: Paths of the files.
        measures: Whether to measure the values of images of more than 8 bits. Measuring 16-bit integers stops once one
            image uses the full range.

    Returns:
        Facts about the readable files, and the reason why each other file cannot be read, by its position.
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

    total, unreadable = FileFacts(), {}
    chunks = [range(start, min(start + _PER_TASK, len(paths))) for start in range(0, len(paths), _PER_TASK)]
    with ThreadPoolExecutor(max_workers=8) as pool, LoggedProgress(len(paths), "Checking files", "file") as bar:
        looked = pool.map(lambda chunk: [look(paths[i]) for i in chunk], chunks)
        for chunk, found in zip(chunks, looked, strict=True):
            for position, facts in zip(chunk, found, strict=True):
                bar.update()
                if isinstance(facts, str):
                    unreadable[position] = facts
                else:
                    total.add(paths[position], facts)
    return total, unreadable


def inspect_image(path: Path, needs_values: Callable[[str], bool] = lambda mode: False) -> ImageFacts:
    """Inspect a file as far as necessary to find out whether it can be decoded.

    A JPEG with the usual segments and ending, and a large PNG with matching checksums, pass without being decoded; any
    other image is decoded.

    Args:
        path: Path of the file.
        needs_values: Whether to measure the values of an image of more than 8 bits and this mode.

    Raises:
        OSError: The image cannot be decoded, for the reason in the message.
    """
    with open_image_file(path) as image:
        if "exif" in image.info:
            image.getexif()  # Pillow warns of damaged EXIF here, and not later in each worker
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
        return ImageFacts(*image.size, values, brightest, count_pages(image), image.info.get(WINDOW))


def _is_sound(path: Path, image: Image.Image) -> bool:
    tail = _TAILS.get(image.format or "")
    if tail is None:
        return False
    with path.open("rb") as raw:
        raw.seek(-min(16, path.stat().st_size), 2)
        if not raw.read().endswith(tail):
            return False
    if image.format == "PNG":  # a small one is decoded: its pixels may be damaged even if the checksums match
        return image.width * image.height > _SMALL and is_sound_png(path)
    layers, tables = getattr(image, "layer", []), getattr(image, "quantization", {})
    return all(layer[3] in tables for layer in layers) and is_sound_jpeg(path)


# --- warnings

_lock = threading.Lock()
_current = threading.local()
_inside = 0  # number of open blocks in all threads
_show_before: Any = None
_shown: set[tuple[type[Warning], str, int]] = set()


@contextmanager
def _prefix_warnings(name: str | None) -> Iterator[None]:
    """Prefix Pillow's warnings inside the block with the name of the file, and show each kind once.

    `warnings.catch_warnings` is not thread-safe.
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
