"""Pictures at rest: one uint8 tensor for what fits in memory, or files that are decoded when read."""

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sft_lightning.data.broken import check_file, whole


class Images(ABC):
    """A numbered collection of pictures."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content (in memory) or of the list of names and sizes (files)."""

    @abstractmethod
    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Bytes of each picture: equal content implies equal size, so only equal sizes are compared."""

    @abstractmethod
    def fingerprints(self, indices: Iterable[int]) -> Iterator[bytes]:
        """SHA-256 of the content of each of some pictures, one after the other."""


class MemoryImages(Images):
    """Pictures as one uint8 tensor of shape (N, C, H, W); a batch is an index into it."""

    def __init__(self, data: Tensor) -> None:
        """Wraps the tensor without a copy.

        Args:
            data: uint8, shape (N, C, H, W).
        """
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def digest(self) -> str:
        """SHA-256 of all pixels."""
        return hashlib.sha256(self.data.contiguous().numpy().data).hexdigest()

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Every picture of a tensor has the same size."""
        return [self.data[0].numel()] * len(indices)

    def fingerprints(self, indices: Iterable[int]) -> Iterator[bytes]:
        """SHA-256 of the pixels of each picture."""
        pixels = self.data.contiguous().numpy()
        return (hashlib.sha256(pixels[i].data).digest() for i in indices)


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


def open_image(path: str | Path, channels: int = 3, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decodes a file to 8-bit gray or RGB, upright, first frame, transparency laid over a background.

    Args:
        path: PNG, JPEG, WebP, BMP, TIFF or GIF, in any mode that Pillow reads.
        channels: 1 or 3.
        background: Color under transparent pixels.

    Raises:
        OSError: The file is missing, empty, truncated or no picture. Decoders raise others, too: see `UNREADABLE`.
    """
    check_file(path)
    with Image.open(path) as file:
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


def decode(path: str | Path, geometry: Geometry, seed: int | None) -> Tensor:
    """Decodes one file to a uint8 tensor of shape (C, size, size).

    Args:
        path: The file.
        geometry: Size, channels and crop.
        seed: Of the random crop; None for the central one.

    Raises:
        OSError: The file cannot be decoded.
    """
    image = open_image(path, geometry.channels, geometry.background)
    square = image.resize(
        (geometry.size, geometry.size),
        Image.Resampling.BILINEAR,
        box=geometry.box(image.width, image.height, seed),
    )
    pixels = torch.from_numpy(np.array(square))
    return pixels[None] if geometry.channels == 1 else pixels.permute(2, 0, 1)


class FileImages(Images):
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

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Bytes of each file; 0 for one that is gone."""
        return [self.paths[i].stat().st_size if self.paths[i].is_file() else 0 for i in indices]

    def digest(self) -> str:
        """SHA-256 of names and sizes, in the order of the names."""
        rows = sorted(zip(self.ids, self.sizes(range(len(self))), strict=True))
        return hashlib.sha256("".join(f"{name}\t{size}\n" for name, size in rows).encode()).hexdigest()

    def fingerprints(self, indices: Iterable[int]) -> Iterator[bytes]:
        """SHA-256 of the bytes of each file."""

        def one(index: int) -> bytes:
            with self.paths[index].open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        return map(one, indices)

    def unreadable(self, indices: Iterable[int]) -> dict[int, str]:
        """Finds the files that are no whole pictures: index to reason.

        Args:
            indices: Which to look at.
        """
        order = list(indices)
        with ThreadPoolExecutor(max_workers=8) as pool:
            reasons = pool.map(lambda i: whole(self.paths[i]), order)
            return {i: reason for i, reason in zip(order, reasons, strict=True) if reason}

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Tensor:
        """Decodes one file to a uint8 tensor of shape (C, size, size).

        Args:
            index: Which.
            geometry: Size, channels and crop.
            seed: Of the random crop; None for the central one.

        Raises:
            OSError: The file cannot be decoded.
        """
        return decode(self.paths[index], geometry, seed)


def repeated(sets: dict[str, tuple[Images, list[int]]]) -> list[list[tuple[str, int]]]:
    """Finds equal pictures across sets by content.

    Only pictures whose size in bytes occurs more than once are hashed, so a folder of photographs costs a `stat`
    per file.

    Args:
        sets: Name of a set to its images and the indices that belong to it.

    Returns:
        Groups of two or more equal pictures, each as (set, index).
    """
    sizes = {name: images.sizes(indices) for name, (images, indices) in sets.items()}
    counts = Counter(size for listed in sizes.values() for size in listed)
    # As an array, in which an example takes 32 bytes: in a dictionary of lists it would take 350.
    contents, names, places = [], list(sets), []
    for name, (images, indices) in sets.items():
        twins = [i for i, size in zip(indices, sizes[name], strict=True) if size and counts[size] > 1]
        contents.append(np.fromiter(images.fingerprints(twins), "S32", len(twins)))
        places.append(np.array(twins, dtype=np.int64))
    content, place = np.concatenate(contents), np.concatenate(places)
    owner = np.repeat(np.arange(len(names)), [len(listed) for listed in places])
    order = np.argsort(content, kind="stable")
    same = content[order[1:]] == content[order[:-1]]
    groups: list[list[int]] = []
    for k in np.flatnonzero(same):
        if not groups or groups[-1][-1] != order[k]:
            groups.append([int(order[k])])
        groups[-1].append(int(order[k + 1]))
    return [[(names[owner[k]], int(place[k])) for k in group] for group in sorted(groups)]
