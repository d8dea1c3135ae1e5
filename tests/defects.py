"""Small textures with and without defects, for the tests of anomaly detection."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def make_texture(seed: int, kind: str = "good", size: int = 32) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Stripes with noise, uint8 (size, size, 3), and their mask, 255 where a `spot` or `scratch` is."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    gray = 120 + 40 * np.sin(columns / 2) + draw.normal(0, 6, (size, size))
    mask = np.zeros((size, size), dtype=np.uint8)
    y, x = draw.integers(size // 4, 3 * size // 4, 2)
    if kind == "spot":
        mask[(rows - y) ** 2 + (columns - x) ** 2 <= (size // 8) ** 2] = 255
    elif kind == "scratch":
        mask[abs(rows - y) < 2] = 255
    gray[mask > 0] = 250
    return np.repeat(gray.clip(0, 255)[..., None], 3, 2).astype(np.uint8), mask


def write_textures(folder: Path, counts: dict[str, int], masks: bool = False, size: int = 32, start: int = 0) -> Path:
    """Write as many textures of each kind to `SPLIT/KIND`, or `KIND`, as `counts` says, and masks of defects."""
    for place, count in counts.items():
        kind = place.rpartition("/")[2]
        (folder / place).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            image, mask = make_texture(start + hash_place(place) + k, kind, size)
            Image.fromarray(image).save(folder / place / f"{k:03}.png")
            if masks and mask.any():
                (folder / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / "ground_truth" / kind / f"{k:03}_mask.png")
    return folder


def hash_place(place: str) -> int:
    """A number for each folder, so that no texture is in two of them."""
    return 1000 * sum(place.encode())
