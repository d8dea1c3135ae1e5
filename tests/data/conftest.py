import csv
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from sft_lightning.data.source import Examples
from sft_lightning.data.storage import TensorStorage
from tests.data.run_helpers import make_data, write_run

# A deadline would fail on a busy machine; the same examples each time, so that a failure is found again.
settings.register_profile("data", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("data")

Color = tuple[int, int, int]
MakeFolder = Callable[..., Path]


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> Path:
    """Save an image of noise that depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_plain_image(path: Path, color: Color, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def write_table(path: Path, rows: Sequence[Sequence[str]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def make_examples(labels: Sequence[int], prefix: str = "train", seed: int = 0) -> Examples:
    """Make examples with images of noise that depend only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (len(labels), 1, 4, 4), generator=generator, dtype=torch.uint8)
    ids = [f"{prefix}/{i}" for i in range(len(labels))]
    return Examples(TensorStorage(data), ids, torch.tensor(labels, dtype=torch.long))


def make_png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def make_png(header: bytes, pixels: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Make a PNG of a header and compressed rows, with other chunks around the pixels."""
    chunks = make_png_chunk(b"IHDR", header) + before + make_png_chunk(b"IDAT", pixels) + after
    return b"\x89PNG\r\n\x1a\n" + chunks + make_png_chunk(b"IEND", b"")


def damage(path: Path) -> Path:
    """Damage the pixels of a PNG, and keep its header and its end."""
    content = bytearray(path.read_bytes())
    for k in range(len(content) // 2, len(content) // 2 + 20):
        content[k] ^= 0xFF
    path.write_bytes(content)
    return path


def break_middle(path: Path) -> Path:
    """Enlarge an image and damage its pixels, but not the checksums of its PNG: only decoding detects it."""
    with Image.open(path) as image:
        rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image.convert("RGB").resize((300, 300))))
    pixels = bytearray(zlib.compress(rows))
    for k in range(len(pixels) // 2, len(pixels) // 2 + 20):
        pixels[k] ^= 0xFF
    path.write_bytes(make_png((300).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0", bytes(pixels)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """Return a function that makes class folders: `folder("train/a", "train/b", count=3)`."""

    def make(*names: str, count: int = 3) -> Path:
        for k, name in enumerate(names):
            for i in range(count):
                write_image(tmp_path / "set" / name / f"{i}.png", seed=1000 * k + i)
        return tmp_path / "set"

    return make


@pytest.fixture
def source(folder: MakeFolder) -> Path:
    return folder("cat", "dog", count=20)


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    return write_run(make_data(source, stage="fit"), tmp_path / "run")
