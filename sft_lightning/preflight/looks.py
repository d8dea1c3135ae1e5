"""One look at every picture: everything that an audit needs to know of it, from decoding it once."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from numpy.typing import NDArray
from PIL import Image

from sft_lightning.cpu import cores
from sft_lightning.data.broken import reason
from sft_lightning.data.decoding import convert_image
from sft_lightning.data.image_files import open_image_file
from sft_lightning.data.images import EncodedImages, Geometry, Images, MemoryImages
from sft_lightning.data.splits import Split

SIDE = 32  # of the small picture
Pixels = NDArray[np.uint8]
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP = 2**20  # pixels
_BATCH = 4096


@dataclass(frozen=True)
class Header:
    """What a file says of its picture.

    Attributes:
        format: As Pillow calls it: JPEG, PNG, ...
        mode: The same: L, RGB, RGBA, CMYK, I;16, ...
        width: In pixels.
        height: In pixels.
        turned: Whether EXIF says that it is to be turned or mirrored.
        transparent: Whether some pixels are transparent, or one of the palette's colors is.
        frames: Of an animation or a stack; 1 as a rule.
    """

    format: str
    mode: str
    width: int
    height: int
    turned: bool
    transparent: bool
    frames: int


@dataclass(frozen=True)
class Look:
    """One readable picture.

    Attributes:
        digest: Of the decoded pixels: upright, in color, over the background. Other bytes can mean the same picture.
        small: (32, 32, C), squeezed to a square.
        spread: Standard deviation of the gray levels, 0 to 127.5.
        gray: Whether no pixel has a color.
        header: Of a file; None in memory.
    """

    digest: bytes
    small: Pixels
    spread: float
    gray: bool
    header: Header | None


@dataclass
class Seen:
    """A split and the looks at its pictures.

    Attributes:
        name: Of the split.
        split: Its examples.
        looks: By position; where a picture cannot be read, the reason.
    """

    name: str
    split: Split
    looks: list[Look | str]

    @property
    def readable(self) -> Iterator[tuple[int, Look]]:
        """Positions and looks of the pictures that can be read."""
        return ((i, look) for i, look in enumerate(self.looks) if isinstance(look, Look))

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


def look_at(name: str, split: Split, geometry: Geometry) -> Seen:
    """Decodes every picture of a split.

    Args:
        name: Of the split.
        split: Its examples.
        geometry: How files become pictures: C of the small ones, and the color under transparent pixels.
    """
    images = split.part.images

    def look(index: int) -> Look | str:
        try:
            return _look(images, index, geometry)
        except Exception as error:  # whatever a decoder makes of a broken file: it is found, and no reason to stop
            return reason(error)

    found: list[Look | str] = []
    bar = Tqdm(total=len(split), desc=f"Images ({name})", unit="image", disable=None, leave=False, delay=1)
    with _silent(), ThreadPoolExecutor(cores()) as pool, bar:
        for first in range(0, len(split), _BATCH):  # the pool would make a task of each at once
            for one in pool.map(look, split.indices[first : first + _BATCH]):
                found.append(one)
                bar.update()
    return Seen(name, split, found)


@contextmanager
def _silent() -> Iterator[None]:
    """Pillow warns of damaged metadata and of large pictures, file by file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _look(images: Images, index: int, geometry: Geometry) -> Look:
    header = None
    if isinstance(images, EncodedImages):
        header = _header(images.file(index))
        with open_image_file(images.file(index)) as file:
            # Both load the pixels: a PNG may have its EXIF behind them.
            is_turned = file.getexif().get(_ORIENTATION, 1) not in (0, 1)
            image = convert_image(file, 3, geometry.background, ranges=geometry.ranges)
            header = replace(header, turned=is_turned, transparent=_transparent(file))
    else:
        assert isinstance(images, MemoryImages)
        pixels = images.data[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).convert("RGB")
    whole = hashlib.blake2b(repr((image.height, image.width, 3)).encode(), digest_size=16)
    counts, is_gray = np.zeros(256), True
    for strip in _strips(image):
        colors: Pixels = np.asarray(strip)
        whole.update(colors.data)
        counts += strip.convert("L").histogram()
        is_gray = is_gray and all(bool((colors[..., 0] == colors[..., k]).all()) for k in (1, 2))
    shrunk = (image.convert("L") if geometry.channels == 1 else image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    small = np.asarray(shrunk).reshape(SIDE, SIDE, geometry.channels)
    return Look(whole.digest(), small, _spread(counts), is_gray, header)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Parts of an image from top to bottom: copies of a large image as a whole would fill the memory."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _spread(counts: NDArray[np.float64]) -> float:
    levels = np.arange(len(counts))
    mean = np.average(levels, weights=counts)
    return float(np.average((levels - mean) ** 2, weights=counts) ** 0.5)


def _header(path: Path | BytesIO) -> Header:
    """What can be said without the pixels."""
    with open_image_file(path) as file:
        return Header(file.format or "", file.mode, *file.size, False, False, getattr(file, "n_frames", 1))


def _transparent(file: Image.Image) -> bool:
    if file.mode in ("RGBA", "LA"):  # as often as not, all of it is opaque
        return file.getchannel("A").getextrema() != (255, 255)
    return file.has_transparency_data


def small(seen: Seen, positions: Sequence[int]) -> Pixels:
    """The small pictures of some readable examples.

    Args:
        seen: Where they are.
        positions: Of readable ones.

    Returns:
        (N, 32, 32, C).
    """
    looks = [seen.looks[i] for i in positions]
    return np.stack([look.small for look in looks if isinstance(look, Look)])
