"""Storage of encoded images, and the geometry by which they are decoded to one shape."""

import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.storage import RecordStorage, Storage, TensorStorage
from sft_lightning.data.vision.decoding import DECODING as DECODING, convert_image, open_image as open_image
from sft_lightning.data.vision.image_files import FileFacts, inspect_images, open_image_file
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges

Resize = Literal["crop", "pad", "squash"]


@dataclass
class Geometry:
    """Settings by which a file is decoded to a square image of fixed size.

    Attributes:
        size: Side of the result in pixels.
        channels: 1 (gray) or 3 (RGB).
        background: Color behind transparent pixels, 0 to 255 per channel.
        center: Share of the shorter side that the central crop keeps (224 / 256 is the usual test view of ImageNet).
        scale: Range of the area that a random crop keeps (Inception's augmentation), or None for the central crop.
        resize: `crop` keeps the central square, `pad` adds background to the shorter side until the image is square,
            and `squash` changes the ratio of its sides.
        ranges: Values of black and white in images of more than 8 bits.
    """

    size: int = 224
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    center: float = 1.0
    scale: tuple[float, float] | None = None
    resize: Resize = "crop"
    ranges: ValueRanges = UNKNOWN

    def __repr__(self) -> str:
        """Name newer settings only if they are set: keys of earlier caches, which contain this text, stay valid."""
        newer = {"resize": "crop", "ranges": UNKNOWN}
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        shown = [f"{name}={value!r}" for name, value in values.items() if name not in newer or value != newer[name]]
        return f"Geometry({', '.join(shown)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the result."""
        return self.channels, self.size, self.size

    @property
    def enough(self) -> int:
        """Shorter side, in pixels, of an image with two pixels per pixel of the result in both directions."""
        kept = self.center if self.scale is None else math.sqrt(self.scale[0] * 3 / 4)
        return math.ceil(2 * self.size / kept)

    def box(self, width: int, height: int, seed: int | None) -> tuple[float, float, float, float]:
        """Return the box of the original that becomes the square image; with `pad` it may extend beyond the original.

        Args:
            width: Width of the original, in pixels.
            height: Height of the original, in pixels.
            seed: Seed of the random crop; None for the central one.

        Returns:
            Left, top, right and bottom in pixels of the original.
        """
        if self.resize == "pad":
            longer = max(width, height)
            square = replace(self, resize="crop").box(longer, longer, seed)
            across, down = (longer - width) / 2, (longer - height) / 2
            return square[0] - across, square[1] - down, square[2] - across, square[3] - down
        if seed is not None and self.scale is not None:
            draw = random.Random(seed)
            for _ in range(10):  # the usual ten attempts before the fallback to the largest crop that fits
                area = width * height * draw.uniform(*self.scale)
                ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
                w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
                if w <= width and h <= height:
                    left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
                    return left, top, left + w, top + h
            w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
            left, top = (width - w) / 2, (height - h) / 2
            return left, top, left + w, top + h
        if self.resize == "squash":
            across, down = width * (1 - self.center) / 2, height * (1 - self.center) / 2
            return across, down, width - across, height - down
        side = min(width, height) * self.center
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


def decode(path: str | Path | BytesIO, geometry: Geometry, seed: int | None) -> Tensor:
    """Decode one file to a uint8 tensor of shape (C, size, size).

    Args:
        path: Path of the file, or its bytes.
        geometry: Size, channels and crop.
        seed: Seed of the random crop; None for the central one.

    Raises:
        OSError: The file cannot be decoded.
    """
    with open_image_file(path) as file:
        return decode_open(file, geometry, seed)


def decode_open(file: Image.Image, geometry: Geometry, seed: int | None) -> Tensor:
    """Decode an open file as `decode` does, for callers that need more from the file than its pixels.

    Args:
        file: Image from `open_image_file`, whose pixels are loaded by this call.
        geometry: Size, channels and crop.
        seed: Seed of the random crop; None for the central one.

    Raises:
        OSError: The content cannot be decoded.
    """
    image = convert_image(file, geometry.channels, geometry.background, geometry.enough, geometry.ranges)
    return cut_out(image, geometry.size, geometry.box(image.width, image.height, seed), geometry.background)


def cut_out(
    image: Image.Image,
    size: int,
    box: tuple[float, float, float, float],
    background: tuple[int, int, int] = (255, 255, 255),
) -> Tensor:
    """Cut a rectangle out of an image, resized to a uint8 tensor of shape (C, size, size).

    Args:
        image: Gray or RGB image.
        size: Side of the result in pixels.
        box: Left, top, right and bottom in pixels of the image, possibly fractional.
        background: Color of the area beyond the image.
    """
    inner, columns, rows = place_box(image.size, size, box)
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    is_outside = inner[0] >= inner[2] or inner[1] >= inner[3]
    if is_outside or (width, height) != (size, size):
        plain = Image.new("RGB", (1, 1), tuple(background)).convert(image.mode)
    if is_outside:
        image, inner = plain, (0, 0, 1, 1)
    made = image.resize((width, height), Image.Resampling.BILINEAR, box=inner)
    if (width, height) != (size, size):
        whole = plain.resize((size, size))
        whole.paste(made, (columns[0], rows[0]))
        made = whole
    pixels = np.array(made)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Placement(NamedTuple):
    """Which part of an original is where in a square image.

    Attributes:
        inner: Left, top, right and bottom of the part, in pixels of the original.
        columns: First and last + 1 column of the square image that the part covers.
        rows: First and last + 1 row of the square image that the part covers.
    """

    inner: tuple[float, float, float, float]
    columns: tuple[int, int]
    rows: tuple[int, int]


def place_box(sides: tuple[int, int], size: int, box: tuple[float, float, float, float]) -> Placement:
    """Find out where a box of an original, which may extend beyond it, lies in a square image.

    Args:
        sides: Width and height of the original in pixels.
        size: Side of the square image in pixels.
        box: Left, top, right and bottom in pixels of the original, possibly fractional.
    """
    left, top, right, bottom = box
    inner = max(left, 0), max(top, 0), min(right, sides[0]), min(bottom, sides[1])
    within = inner if inner[0] < inner[2] and inner[1] < inner[3] else (0, 0, 1, 1)
    # A border of less than a hundredth of a pixel of the result is a rounding error.
    columns = _place(within[0] - left, within[2] - left, right - left, size)
    return Placement(inner, columns, _place(within[1] - top, within[3] - top, bottom - top, size))


def _place(first: float, last: float, length: float, size: int) -> tuple[int, int]:
    """Return the first and last + 1 pixel of the result that a section of a side covers, at least one pixel."""
    start = min(round(first / length * size), size - 1)
    return start, max(round(last / length * size), start + 1)


MemoryImages = TensorStorage  # its name in version 0.1, which sources of users import


class EncodedImages(RecordStorage):
    """Storage of images that are decoded when they are read.

    Attributes:
        facts: Properties that the files have in common; None before they are inspected.
    """

    facts: FileFacts | None = None

    @abstractmethod
    def file(self, index: int) -> Path | BytesIO:
        """Return where an image is stored, or its bytes as they are stored.

        Args:
            index: Position of the image.

        Raises:
            OSError: It cannot be read.
        """

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Tensor:
        """Decode one image to a uint8 tensor of shape (C, size, size).

        Args:
            index: Position of the image.
            geometry: Size, channels and crop.
            seed: Seed of the random crop; None for the central one.

        Raises:
            OSError: It cannot be decoded.
        """
        return decode(self.file(index), geometry, seed)


class FileImages(FileStorage, EncodedImages):
    """Storage of images as files."""

    def file(self, index: int) -> Path:
        """Return the path of a file."""
        return self.paths[index]

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "FileImages":
        """Join some files of several lists."""
        files = [(images.paths, chosen) for images, chosen in pieces if isinstance(images, FileImages)]
        return cls([paths[i] for paths, chosen in files for i in chosen], ids)

    def count_decoded(self, indices: Sequence[int], geometry: Geometry) -> int:
        """Return the bytes of the pixels of some images."""
        return len(indices) * math.prod(geometry.shape)

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Inspect each file as far as needed, and keep the properties they have in common in `facts`."""
        order = list(indices)
        self.facts, reasons = inspect_images([self.paths[i] for i in order], measures)
        return {order[k]: reason for k, reason in reasons.items()}
