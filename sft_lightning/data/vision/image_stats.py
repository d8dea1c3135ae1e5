"""One look at every picture: everything that an audit needs to know of it, from decoding it once."""

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

from sft_lightning.data.splits import Split
from sft_lightning.data.vision.decoding import convert_image, open_image
from sft_lightning.data.vision.file_checks import describe_read_error
from sft_lightning.data.vision.image_files import open_image_file
from sft_lightning.data.vision.images import EncodedImages, Geometry, Images, MemoryImages
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.progress_lines import LoggedProgress

SIDE = 32  # of the small picture
Pixels = NDArray[np.uint8]
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP = 2**22  # pixels
_BATCH = 4096
# Before it is resized, an image of 512 pixels or more a side is averaged over whole pixels down to 256 or more, which
# takes a quarter of the time. The small images then differ by 0.3 of 255 on average, at most.
_REDUCING_GAP = 8
_CONTRAST = 8.0  # gray levels of deviation in the small image: that of the whole is more than 2 then


@dataclass(frozen=True)
class Header:
    """What a file says of its picture.

    Attributes:
        format: As Pillow calls it: JPEG, PNG, ...
        mode: The same: L, RGB, RGBA, CMYK, I;16, ...
        width: In pixels.
        height: In pixels.
        is_rotated: Whether EXIF says that it is to be turned or mirrored.
        is_transparent: Whether some pixels are transparent, or one of the palette's colors is.
        frames: Of an animation or a stack; 1 as a rule.
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
    """One readable image.

    Attributes:
        size: Width and height, upright.
        thumbnail: (32, 32, C), squeezed to a square; those of large images are made of averages of their pixels.
        thumbnail_digest: Digest of that.
        gray_std: Standard deviation of the gray levels, 0 to 127.5; None where the small image shows contrast.
        is_gray: Whether no pixel has a color.
        header: Of a file; None in memory.
        decode: Reads the image again: upright, in color, over the background.
        digest: Of the decoded pixels, which other bytes may mean, too; None until `identify_contents` needs it.
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
        """What equal images have in common, and few others."""
        return self.size, self.thumbnail_digest


@dataclass
class SplitStats:
    """A split and the looks at its pictures.

    Attributes:
        name: Of the split.
        split: Its examples.
        images: By position; where a picture cannot be read, the reason.
    """

    name: str
    split: Split
    images: list[ImageStats | str]

    @property
    def readable(self) -> Iterator[tuple[int, ImageStats]]:
        """Positions and looks of the pictures that can be read."""
        return ((i, look) for i, look in enumerate(self.images) if isinstance(look, ImageStats))

    def label(self, position: int) -> int:
        """The label that a run can learn from or measure with, or -1.

        Args:
            position: In the split.
        """
        return -1 if self.name == "unlabeled" else int(self.split.part.labels[self.split.indices[position]])

    def id(self, position: int) -> str:
        """The name of an example.

        Args:
            position: In the split.
        """
        return self.split.part.ids[self.split.indices[position]]


def compute_image_stats(name: str, split: Split, geometry: Geometry) -> SplitStats:
    """Decodes every picture of a split.

    Args:
        name: Of the split.
        split: Its examples.
        geometry: How files become pictures: C of the small ones, and the color under transparent pixels.
    """
    images = split.part.images

    def look(index: int) -> ImageStats | str:
        try:
            return _compute_stats(images, index, geometry)
        except Exception as error:  # whatever a decoder makes of a broken file: it is found, and no reason to stop
            return describe_read_error(error)

    found: list[ImageStats | str] = []
    bar = LoggedProgress(len(split), f"Images ({name})", "image")
    with _ignore_warnings(), ThreadPoolExecutor(count_cores()) as pool, bar:
        for first in range(0, len(split), _BATCH):  # the pool would make a task of each at once
            for one in pool.map(look, split.indices[first : first + _BATCH]):
                found.append(one)
                bar.update()
    return SplitStats(name, split, found)


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Pillow warns of damaged metadata and of large pictures, file by file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compute_stats(images: Images, index: int, geometry: Geometry) -> ImageStats:
    header = None
    if isinstance(images, EncodedImages):
        header = _read_header(images.file(index))
        with open_image_file(images.file(index)) as file:
            # Both load the pixels: a PNG may have its EXIF behind them.
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
    # Where the small image has a color, the whole has one.
    is_gray = _is_gray(small) and all(_is_gray(np.asarray(strip)) for strip in _cut_strips(image))
    return ImageStats(
        image.size, small, small_digest, spread, is_gray, header, partial(_decode, images, index, geometry)
    )


def _decode(images: Images, index: int, geometry: Geometry) -> Image.Image:
    """Return an image upright, in color, over the background."""
    if isinstance(images, EncodedImages):
        return open_image(images.file(index), 3, geometry.background, ranges=geometry.ranges)
    assert isinstance(images, MemoryImages)
    pixels = images.data[index].permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).convert("RGB")


def identify_contents(images: Sequence[ImageStats | str]) -> list[object]:
    """Return for each image what only images of equal pixels have in common, and None for one that cannot be read.

    Only images that another one has the size and the small image of are decoded again, each at most once.

    Args:
        images: All images that are to be compared.
    """
    counts = Counter(look.key for look in images if isinstance(look, ImageStats))
    alike = [look for look in images if isinstance(look, ImageStats) and counts[look.key] > 1 and look.digest is None]
    bar = LoggedProgress(len(alike), "Comparing pixels", "image")
    with _ignore_warnings(), ThreadPoolExecutor(count_cores()) as pool, bar:
        for first in range(0, len(alike), _BATCH):
            some = alike[first : first + _BATCH]
            for look, digest in zip(some, pool.map(_digest, some), strict=True):
                look.digest = digest
                bar.update()
    return [(look.digest or look.key) if isinstance(look, ImageStats) else None for look in images]


def _digest(look: ImageStats) -> bytes:
    try:
        image = look.decode()
    except OSError:  # gone since the first look: it equals nothing
        return os.urandom(32)
    whole = hashlib.sha256(repr(image.size).encode())
    for strip in _cut_strips(image):
        whole.update(strip.tobytes())
    return whole.digest()


def _is_gray(pixels: Pixels) -> bool:
    return all(bool((pixels[..., 0] == pixels[..., k]).all()) for k in range(1, pixels.shape[2]))


def _cut_strips(image: Image.Image) -> Iterator[Image.Image]:
    """Parts of an image from top to bottom: copies of a large image as a whole would fill the memory."""
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
    """What can be said without the pixels."""
    with open_image_file(path) as file:
        return Header(file.format or "", file.mode, *file.size, False, False, getattr(file, "n_frames", 1))


def _is_transparent(file: Image.Image) -> bool:
    if file.mode in ("RGBA", "LA"):  # as often as not, all of it is opaque
        return file.getchannel("A").getextrema() != (255, 255)
    return file.has_transparency_data


def stack_thumbnails(split: SplitStats, positions: Sequence[int]) -> Pixels:
    """The small pictures of some readable examples.

    Args:
        split: Where they are.
        positions: Of readable ones.

    Returns:
        (N, 32, 32, C).
    """
    looks = [split.images[i] for i in positions]
    return np.stack([look.thumbnail for look in looks if isinstance(look, ImageStats)])
