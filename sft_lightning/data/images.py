"""Pictures at rest: one uint8 tensor for what fits in memory, or files that are decoded when read."""

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sft_lightning.data.broken import check_file, whole
from sft_lightning.device import fits


class Images(ABC):
    """A numbered collection of pictures."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content (in memory) or of the list of names and sizes (files)."""

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
        if device not in self._there and fits(self.data.nbytes, device):
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
    """

    size: int = 224
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    center: float = 1.0
    scale: tuple[float, float] | None = None

    @property
    def enough(self) -> int:
        """Shorter side, in pixels, of a picture that has two for each of the result in both directions."""
        kept = self.center if self.scale is None else math.sqrt(self.scale[0] * 3 / 4)
        return math.ceil(2 * self.size / kept)

    def box(self, width: int, height: int, seed: int | None) -> tuple[float, float, float, float]:
        """The rectangle of the original that becomes the square picture.

        Args:
            width: Of the original, in pixels.
            height: Of the original, in pixels.
            seed: Draws the random crop; None asks for the central one.
        """
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
        side = min(width, height) * self.center
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


DECODING = 2  # raised where files become other pixels than before: caches of them, or of features, are made anew


def open_image(
    path: str | Path | BytesIO,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    enough: int | None = None,
) -> Image.Image:
    """Decodes a file to 8-bit gray or RGB, upright, first frame, transparency laid over a background.

    Args:
        path: PNG, JPEG, WebP, BMP, TIFF or GIF, in any mode that Pillow reads; or its bytes.
        channels: 1 or 3.
        background: Color under transparent pixels.
        enough: A JPEG is decoded to an eighth, a quarter or half of its size where its shorter side stays that long and
            both are whole numbers, which takes a third of the time or less (libjpeg's scaled inverse DCT); None for
            the whole size. What is made of it then differs from what is made of the whole by 0.2 to 0.8 of 255 on
            average (photographs of 2000x1500 at 224, and of 640x424 with fine detail at 100).

    Raises:
        OSError: The file is missing, empty, truncated or no picture. Decoders raise others, too: see `UNREADABLE`.
    """
    if not isinstance(path, BytesIO):
        check_file(path)
    with Image.open(path) as file:
        if enough is not None and file.format in ("JPEG", "MPO"):
            # Sides that k does not divide would be rounded up, and the picture be shifted by a part of a pixel.
            parts = next(
                (k for k in (8, 4, 2) if min(file.size) >= k * enough and not any(n % k for n in file.size)), 1
            )
            if parts > 1:
                file.draft(None, (file.width // parts, file.height // parts))
        file.load()
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            image = _to_eight_bits(image)
        if image.has_transparency_data:
            over = image.convert("RGBA")
            image = Image.new("RGBA", over.size, (*background, 255))
            image.alpha_composite(over)
        return image.convert("L" if channels == 1 else "RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit data is scaled by its full range; float data (TIFF) by 1 or 255 or 65535, whichever holds its maximum."""
    pixels = np.asarray(image).astype(np.float64)
    top = pixels.max(initial=0.0)
    full = 65535.0
    if image.mode == "F" and top <= 255.0:
        full = 1.0 if top <= 1.0 else 255.0
    gray = Image.fromarray(np.clip(pixels / full * 255.0, 0, 255).round().astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one gray value of a 16-bit PNG that stands for nothing
        gray.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return gray


def decode(path: str | Path | BytesIO, geometry: Geometry, seed: int | None) -> Tensor:
    """Decodes one file to a uint8 tensor of shape (C, size, size).

    Args:
        path: The file, or its bytes.
        geometry: Size, channels and crop.
        seed: Of the random crop; None for the central one.

    Raises:
        OSError: The file cannot be decoded.
    """
    image = open_image(path, geometry.channels, geometry.background, geometry.enough)
    return cut_out(image, geometry.size, geometry.box(image.width, image.height, seed))


def cut_out(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    """A rectangle of a picture as uint8 tensor of shape (C, size, size).

    Args:
        image: Gray or RGB.
        size: Side of the result in pixels.
        box: Left, top, right, bottom in pixels of the picture; parts of pixels count.
    """
    pixels = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


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
    """

    decoded: bool = False

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
    def unreadable(self, indices: Iterable[int]) -> dict[int, str]:
        """Finds those that are no whole pictures, as far as that is told without decoding: index to reason.

        Args:
            indices: Which to look at.
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
        """SHA-256 of names and sizes, in the order of the names."""
        rows = sorted(zip(self.ids, self.sizes(range(len(self))), strict=True))
        return hashlib.sha256("".join(f"{name}\t{size}\n" for name, size in rows).encode()).hexdigest()

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """SHA-256 of the bytes of each file."""

        def one(index: int) -> bytes:
            with self.paths[index].open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        return [one(index) for index in indices]

    def unreadable(self, indices: Iterable[int]) -> dict[int, str]:
        """Looks at the header of each file, and at its end."""
        order = list(indices)
        with ThreadPoolExecutor(max_workers=8) as pool:
            reasons = pool.map(lambda i: whole(self.paths[i]), order)
            return {i: reason for i, reason in zip(order, reasons, strict=True) if reason}


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
