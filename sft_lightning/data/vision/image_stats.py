"""Statistics of each image for the audit, from decoding it once."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_lightning.data.bad_examples import describe_read_error
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import Storage, TensorStorage
from sft_lightning.data.vision.decoding import convert_image, open_image
from sft_lightning.data.vision.image_files import is_gray_mode, open_image_file
from sft_lightning.data.vision.image_frames import count_pages
from sft_lightning.data.vision.images import EncodedImages, Geometry
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.progress_lines import LoggedProgress

SIDE = 32  # of the thumbnail, in pixels
Pixels = NDArray[np.uint8]
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP = 2**22  # pixels
_HEADERS = 1000  # files of a split whose headers are compared
_BATCH = 4096
# Before resizing, Pillow averages squares of pixels of an image of 512 pixels or more a side down to 256 or more, which
# takes a quarter of the time and changes the thumbnail by at most 0.3 of 255 on average.
_REDUCING_GAP = 8
_CONTRAST = 8.0  # standard deviation of the thumbnail's gray levels above which that of the image exceeds 2


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        format: Format as Pillow names it: JPEG, PNG, ...
        mode: Mode as Pillow names it: L, RGB, RGBA, CMYK, I;16, ...
        width: Width in pixels.
        height: Height in pixels.
        is_rotated: Whether EXIF asks to rotate or mirror the image.
        is_transparent: Whether some pixels, or a color of the palette, are transparent.
        frames: Number of images of an animation or a stack, of which the first is read, else 1.
    """

    format: str
    mode: str
    width: int
    height: int
    is_rotated: bool
    is_transparent: bool
    frames: int


@dataclass
class ImageStats:
    """Statistics of one readable image.

    Attributes:
        size: Width and height in pixels, upright.
        thumbnail: Pixels of shape (32, 32, C), resized to a square regardless of the aspect ratio.
        thumbnail_digest: Digest of the thumbnail.
        gray_std: Standard deviation of the gray levels, 0 to 127.5; None where the thumbnail shows enough contrast.
        is_gray: Whether all pixels are gray.
        header: Header of the file; None for an image in memory.
        decode: Function that reads the image again: upright, in color, over the background.
        digest: Digest of the decoded pixels, which different files may share; None until `identify_contents` needs it.
    """

    size: tuple[int, int]
    thumbnail: Pixels
    thumbnail_digest: bytes
    gray_std: float | None
    is_gray: bool
    header: Header | None
    decode: Callable[[], Image.Image]
    digest: bytes | None = None

    @property
    def key(self) -> tuple[tuple[int, int], bytes]:
        """Key that equal images share, and few others."""
        return self.size, self.thumbnail_digest


ImageSplitStats = SplitStats[ImageStats]


def compute_image_stats(name: str, split: Split, geometry: Geometry) -> ImageSplitStats:
    """Decode every image of a split and compute its statistics.

    Args:
        name: Name of the split.
        split: Examples of the split.
        geometry: Geometry of the run: number of channels of the thumbnails, background and value ranges.
    """
    images = split.part.storage

    def compute(index: int) -> ImageStats | str:
        try:
            return _compute_stats(images, index, geometry)
        except Exception as error:  # decoders raise anything; the audit reports the file and goes on
            return describe_read_error(error)

    stats: list[ImageStats | str] = []
    bar = LoggedProgress(len(split), f"Images ({name})", "image")
    with _ignore_warnings(), ThreadPoolExecutor(count_cores()) as pool, bar:
        for first in range(0, len(split), _BATCH):  # `map` would queue all images at once
            for one in pool.map(compute, split.indices[first : first + _BATCH]):
                stats.append(one)
                bar.update()
    return ImageSplitStats(name, split, stats)


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about damaged metadata and large images, which it repeats for each file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compute_stats(images: Storage, index: int, geometry: Geometry) -> ImageStats:
    header = None
    if isinstance(images, EncodedImages):
        header = _read_header(images.file(index))
        with open_image_file(images.file(index)) as file:
            # Both calls load the pixels: in a PNG, EXIF may come after them.
            is_turned = file.getexif().get(_ORIENTATION, 1) not in (0, 1)
            image = convert_image(file, 3, geometry.background, ranges=geometry.ranges)
            header = replace(header, is_rotated=is_turned, is_transparent=_is_transparent(file))
    else:
        image = _decode(images, index, geometry)
    shrunk = (image.convert("L") if geometry.channels == 1 else image).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP
    )
    small = np.asarray(shrunk).reshape(SIDE, SIDE, geometry.channels)
    small_digest = hashlib.blake2b(small.tobytes(), digest_size=16).digest()
    has_contrast = np.asarray(shrunk.convert("L")).std() >= _CONTRAST
    spread = None if has_contrast else _compute_gray_std(image)
    # If the thumbnail has a color, so does the image.
    is_gray = _is_gray(small) and all(_is_gray(np.asarray(strip)) for strip in _cut_strips(image))
    return ImageStats(
        image.size, small, small_digest, spread, is_gray, header, partial(_decode, images, index, geometry)
    )


def _decode(images: Storage, index: int, geometry: Geometry) -> Image.Image:
    """Return an image upright, in color, over the background."""
    if isinstance(images, EncodedImages):
        return open_image(images.file(index), 3, geometry.background, ranges=geometry.ranges)
    assert isinstance(images, TensorStorage)
    pixels = images.data[index].permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).convert("RGB")


def identify_contents(images: Sequence[ImageStats | str]) -> list[object]:
    """Return an identifier of each image's pixels, equal for images of equal pixels; None where it cannot be read.

    Only images that share their size and thumbnail with another one are decoded again, each at most once.

    Args:
        images: Statistics of all images to compare, or the reasons why they cannot be read.
    """
    counts = Counter(look.key for look in images if isinstance(look, ImageStats))
    alike = [look for look in images if isinstance(look, ImageStats) and counts[look.key] > 1 and look.digest is None]
    bar = LoggedProgress(len(alike), "Comparing pixels", "image")
    with _ignore_warnings(), ThreadPoolExecutor(count_cores()) as pool, bar:
        for first in range(0, len(alike), _BATCH):
            batch = alike[first : first + _BATCH]
            for look, digest in zip(batch, pool.map(_digest, batch), strict=True):
                look.digest = digest
                bar.update()
    return [(look.digest or look.key) if isinstance(look, ImageStats) else None for look in images]


def _digest(look: ImageStats) -> bytes:
    try:
        image = look.decode()
    except OSError:  # the file is gone since it was first read: it equals no other image
        return os.urandom(32)
    digest = hashlib.sha256(repr(image.size).encode())
    for strip in _cut_strips(image):
        digest.update(strip.tobytes())
    return digest.digest()


def _is_gray(pixels: Pixels) -> bool:
    return all(bool((pixels[..., 0] == pixels[..., k]).all()) for k in range(1, pixels.shape[2]))


def _cut_strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield strips of an image from top to bottom, as a copy of a large image would fill the memory."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield image  # a crop would copy it
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _compute_gray_std(image: Image.Image) -> float:
    counts = np.sum([strip.convert("L").histogram() for strip in _cut_strips(image)], axis=0)
    levels = np.arange(len(counts))
    mean = np.average(levels, weights=counts)
    return float(np.average((levels - mean) ** 2, weights=counts) ** 0.5)


def _read_header(path: Path | BytesIO) -> Header:
    """Read the header of a file without its pixels."""
    with open_image_file(path) as file:
        return Header(file.format or "", file.mode, *file.size, False, False, count_pages(file))


def find_small_shape(splits: Sequence[Split], largest: int) -> tuple[int, int] | None:
    """Return the channels and the side that image files have in common, if they are small squares of one size.

    Headers are read, of at most 1,000 files of each split. One file in color gives all of them three channels.

    Args:
        splits: Splits of files.
        largest: Largest side in pixels.
    """
    if not all(isinstance(split.part.storage, EncodedImages) for split in splits):
        return None
    sizes, are_gray = set(), True
    for header in _iterate_headers(splits):
        sizes.add((header.width, header.height))
        are_gray = are_gray and is_gray_mode(header.mode)
        if len(sizes) > 1:
            return None
    width, height = sizes.pop() if sizes else (0, 1)
    return (1 if are_gray else 3, width) if width == height <= largest else None


def find_largest_side(splits: Sequence[Split]) -> int:
    """Return the longest side of image files in pixels, by the headers of at most 1,000 of each split; 0 without any.

    Args:
        splits: Splits of files.
    """
    return max((max(header.width, header.height) for header in _iterate_headers(splits)), default=0)


def _iterate_headers(splits: Sequence[Split]) -> Iterator[Header]:
    """Yield the headers of at most 1,000 files of each split that holds files."""
    for split in splits:
        images = split.part.storage
        if not isinstance(images, EncodedImages):
            continue
        for index in list(split.indices)[:: -(-len(split) // _HEADERS) or 1]:
            try:
                yield _read_header(images.file(index))
            except OSError:  # `setup` reports the file
                continue


def _is_transparent(file: Image.Image) -> bool:
    if file.mode in ("RGBA", "LA"):  # many files have an alpha channel that is opaque everywhere
        return file.getchannel("A").getextrema() != (255, 255)
    return file.has_transparency_data


def stack_thumbnails(split: ImageSplitStats, positions: Sequence[int]) -> Pixels:
    """Stack the thumbnails of readable images.

    Args:
        split: Statistics of the split.
        positions: Positions of readable images.

    Returns:
        Thumbnails of shape (N, 32, 32, C).
    """
    images = [split.examples[i] for i in positions]
    return np.stack([image.thumbnail for image in images if isinstance(image, ImageStats)])
