"""Pictures at rest: one uint8 tensor for what fits in memory, or files that are decoded when read."""

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sft_lightning.data.digests import combine_digests, digest_files
from sft_lightning.data.vision.decoding import DECODING as DECODING, open_image as open_image
from sft_lightning.data.vision.image_files import FileFacts, inspect_images
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges
from sft_lightning.utils.transfer import fits_in_memory

Resize = Literal["crop", "pad", "squash"]


class Images(ABC):
    """A numbered collection of pictures."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content of all images; of files, also of their names."""

    @abstractmethod
    def sizes(self, indices: Sequence[int]) -> Sequence[int] | npt.NDArray[np.int64]:
        """Bytes of each picture: equal content implies equal size, so only equal sizes are compared."""

    @abstractmethod
    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """SHA-256 of the content of each of some pictures."""


class MemoryImages(Images):
    """Pictures as one uint8 tensor of shape (N, C, H, W); a batch is an index into it."""

    def __init__(self, data: Tensor) -> None:
        """Wraps the tensor without a copy.

        Args:
            data: uint8, shape (N, C, H, W).
        """
        self.data = data
        self._there: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.data)

    def on(self, device: torch.device) -> Tensor:
        """The pictures on a device, copied there once, where they fit; else where they are.

        Args:
            device: Of the network.
        """
        if device not in self._there and fits_in_memory(self.data.nbytes, device):
            self._there[device] = self.data.to(device)  # once, so not by way of pinned memory, which would be kept
        return self._there.get(device, self.data)

    def digest(self) -> str:
        """SHA-256 of all pixels."""
        return hashlib.sha256(self.data.contiguous().numpy().data).hexdigest()

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Every picture of a tensor has the same size."""
        return [self.data[0].numel()] * len(indices)

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """SHA-256 of the pixels of each picture."""
        pixels = self.data.contiguous().numpy()
        return [hashlib.sha256(pixels[i].data).digest() for i in indices]


@dataclass
class Geometry:
    """How a file becomes a square picture of fixed size while it is decoded.

    Attributes:
        size: Side of the result in pixels.
        channels: 1 (gray) or 3 (RGB).
        background: Color that shows through transparent pixels, 0 to 255 per channel.
        center: Share of the shorter side that the central crop keeps (224 / 256 is the usual test view of ImageNet).
        scale: Range of the area that a random crop keeps (Inception's augmentation), or None for the central crop.
        resize: `crop` keeps the central square, `pad` adds background to the shorter side until the image is square,
            and `squash` changes the ratio of its sides.
        ranges: What is black and white in images of more than 8 bits.
    """

    size: int = 224
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    center: float = 1.0
    scale: tuple[float, float] | None = None
    resize: Resize = "crop"
    ranges: ValueRanges = UNKNOWN

    def __repr__(self) -> str:
        """Name the newer settings only where they are set: what earlier versions kept by this text stays valid."""
        newer = {"resize": "crop", "ranges": UNKNOWN}
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        shown = [f"{name}={value!r}" for name, value in values.items() if name not in newer or value != newer[name]]
        return f"Geometry({', '.join(shown)})"

    @property
    def enough(self) -> int:
        """Shorter side, in pixels, of a picture that has two for each of the result in both directions."""
        kept = self.center if self.scale is None else math.sqrt(self.scale[0] * 3 / 4)
        return math.ceil(2 * self.size / kept)

    def box(self, width: int, height: int, seed: int | None) -> tuple[float, float, float, float]:
        """The rectangle of the original that becomes the square picture; with `pad` it may reach beyond the original.

        Args:
            width: Of the original, in pixels.
            height: Of the original, in pixels.
            seed: Draws the random crop; None asks for the central one.
        """
        if self.resize == "pad":
            longer = max(width, height)
            square = replace(self, resize="crop").box(longer, longer, seed)
            across, down = (longer - width) / 2, (longer - height) / 2
            return square[0] - across, square[1] - down, square[2] - across, square[3] - down
        if seed is not None and self.scale is not None:
            draw = random.Random(seed)
            for _ in range(10):  # the usual ten attempts before the crop falls back to the largest that fits
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
    """Decodes one file to a uint8 tensor of shape (C, size, size).

    Args:
        path: The file, or its bytes.
        geometry: Size, channels and crop.
        seed: Of the random crop; None for the central one.

    Raises:
        OSError: The file cannot be decoded.
    """
    image = open_image(path, geometry.channels, geometry.background, geometry.enough, geometry.ranges)
    return cut_out(image, geometry.size, geometry.box(image.width, image.height, seed), geometry.background)


def cut_out(
    image: Image.Image,
    size: int,
    box: tuple[float, float, float, float],
    background: tuple[int, int, int] = (255, 255, 255),
) -> Tensor:
    """A rectangle of a picture as uint8 tensor of shape (C, size, size).

    Args:
        image: Gray or RGB.
        size: Side of the result in pixels.
        box: Left, top, right, bottom in pixels of the picture; parts of pixels count.
        background: Color of what lies beyond the picture.
    """
    left, top, right, bottom = box
    inner = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    plain = Image.new("RGB", (1, 1), tuple(background)).convert(image.mode)
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        image, inner = plain, (0, 0, 1, 1)
    # A border of less than a hundredth of a pixel of the result is an error of rounding.
    columns = _place(inner[0] - left, inner[2] - left, right - left, size)
    rows = _place(inner[1] - top, inner[3] - top, bottom - top, size)
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    made = image.resize((width, height), Image.Resampling.BILINEAR, box=inner)
    if (width, height) != (size, size):
        whole = plain.resize((size, size))
        whole.paste(made, (columns[0], rows[0]))
        made = whole
    pixels = np.array(made)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _place(first: float, last: float, length: float, size: int) -> tuple[int, int]:
    """Where a part of a side lies among the pixels of the result: at least one of them."""
    start = min(round(first / length * size), size - 1)
    return start, max(round(last / length * size), start + 1)


def stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures of one shape as one tensor, copied by this thread alone.

    `torch.stack` divides each among its threads; where others want the cores, too, they wait for each other: 2 seconds
    for 384 pictures of 3 x 224 x 224 on two busy cores, instead of 13 milliseconds.

    Args:
        pictures: uint8, on the CPU; at least one.
    """
    made = np.empty((len(pictures), *pictures[0].shape), np.uint8)
    return torch.from_numpy(np.stack([picture.numpy() for picture in pictures], out=made))


class EncodedImages(Images):
    """Pictures that are decoded when they are read.

    Attributes:
        decoded: They were already, and what is read without a random crop is just there.
        facts: What the files have in common, where they were looked at.
    """

    decoded: bool = False
    facts: FileFacts | None = None

    @abstractmethod
    def file(self, index: int) -> Path | BytesIO:
        """Where the picture is stored, or its bytes as they are stored.

        Args:
            index: Which.

        Raises:
            OSError: It cannot be read.
        """

    @abstractmethod
    def place(self, index: int) -> Path:
        """Where a picture is, for messages.

        Args:
            index: Which.
        """

    @abstractmethod
    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Finds those that are no whole pictures, as far as that is told without decoding: index to reason.

        Args:
            indices: Which to look at.
            measures: Whether to measure the values of images of more than 8 bits, where that takes decoding.
        """

    @classmethod
    @abstractmethod
    def joined(cls, pieces: Sequence[tuple[Images, Sequence[int]]], ids: Sequence[str]) -> "EncodedImages":
        """Some pictures of several collections as one.

        Args:
            pieces: Collections of this kind, and which of their pictures.
            ids: Names of all.
        """

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Tensor:
        """Decodes one picture to a uint8 tensor of shape (C, size, size).

        Args:
            index: Which.
            geometry: Size, channels and crop.
            seed: Of the random crop; None for the central one.

        Raises:
            OSError: It cannot be decoded.
        """
        return decode(self.file(index), geometry, seed)

    def several(self, indices: Sequence[int], pinned: bool = False) -> Tensor | None:
        """Several pictures at once, uint8 (B, C, H, W), without a random crop; None where not all are there decoded.

        Args:
            indices: Which.
            pinned: In memory from where a GPU copies faster.
        """
        return None


class FileImages(EncodedImages):
    """Pictures as files."""

    def __init__(self, paths: Sequence[Path], ids: Sequence[str]) -> None:
        """Keeps the list; nothing is read.

        Args:
            paths: Where the files lie.
            ids: The name of each in manifests and messages, the same on every machine.
        """
        self.paths = list(paths)
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """The path of a file."""
        return self.paths[index]

    def place(self, index: int) -> Path:
        """The path of a file."""
        return self.paths[index]

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Images, Sequence[int]]], ids: Sequence[str]) -> "FileImages":
        """Some files of several lists."""
        files = [(images.paths, chosen) for images, chosen in pieces if isinstance(images, FileImages)]
        return cls([paths[i] for paths, chosen in files for i in chosen], ids)

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Bytes of each file; 0 for one that is gone."""
        return [self.paths[i].stat().st_size if self.paths[i].is_file() else 0 for i in indices]

    def digest(self) -> str:
        """SHA-256 of names and contents, in the order of the names."""
        return combine_digests(sorted(zip(self.ids, digest_files(self.paths), strict=True), key=lambda row: row[0]))

    def digest_sizes(self) -> str:
        """SHA-256 of names and sizes, which earlier versions took for that of the content."""
        rows = sorted(zip(self.ids, self.sizes(range(len(self))), strict=True))
        return hashlib.sha256("".join(f"{name}\t{size}\n" for name, size in rows).encode()).hexdigest()

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """SHA-256 of the bytes of each file."""
        paths = [self.paths[i] for i in indices]
        digests = digest_files(paths)
        for path, digest in zip(paths, digests, strict=True):
            if digest is None:
                raise OSError(f"image {str(path)!r} cannot be read")
        return [digest for digest in digests if digest is not None]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Looks at each file as far as it takes to know, and keeps what they have in common in `facts`."""
        order = list(indices)
        self.facts, reasons = inspect_images([self.paths[i] for i in order], measures)
        return {order[k]: reason for k, reason in reasons.items()}


_AT_ONCE = 4096  # digests that are in memory while equal pictures are looked for


def repeated(sets: dict[str, tuple[Images, Sequence[int]]]) -> list[list[tuple[str, int]]]:
    """Finds equal pictures across sets by content.

    Only pictures whose size in bytes occurs more than once are hashed, so a folder of photographs costs a `stat`
    per file. Of each of these 8 bytes of its digest are kept, and only where they are equal the whole is looked at.

    Args:
        sets: Name of a set to its images and the indices that belong to it.

    Returns:
        Groups of two or more equal pictures, each as (set, index).
    """
    sizes = {name: np.asarray(images.sizes(indices), dtype=np.int64) for name, (images, indices) in sets.items()}
    values, counts = np.unique(np.concatenate([*sizes.values()]), return_counts=True)
    often = values[(counts > 1) & (values > 0)]
    twins = {name: _of(sets[name][1], np.isin(sizes[name], often)) for name in sets}
    short = {name: _short(sets[name][0], twins[name]) for name in sets}
    values, counts = np.unique(np.concatenate([*short.values()]), return_counts=True)
    seen: dict[bytes, list[tuple[str, int]]] = {}
    for name, (images, _) in sets.items():
        equal = twins[name][np.isin(short[name], values[counts > 1])].tolist()
        for index, content in zip(equal, images.fingerprints(equal), strict=True):
            seen.setdefault(content, []).append((name, index))
    return [group for group in seen.values() if len(group) > 1]


def _of(indices: Sequence[int], which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.asarray(indices, dtype=np.int64)[which]


def _short(images: Images, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of the digest of each picture."""
    found = np.empty(len(indices), np.uint64)
    for first in range(0, len(indices), _AT_ONCE):
        contents = images.fingerprints(indices[first : first + _AT_ONCE].tolist())
        found[first : first + _AT_ONCE] = np.frombuffer(b"".join(content[:8] for content in contents), np.uint64)
    return found
