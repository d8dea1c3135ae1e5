"""Small composed scenes with exact masks, for the tests of segmentation."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ["background", "square", "disc"]
COLORS = {"background": [0, 0, 0], "square": [200, 40, 40], "disc": [40, 200, 40]}


def make_scene(seed: int, size: int = 32) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A red square and a green disc on gray noise, uint8 (size, size, 3), and their classes, (size, size)."""
    draw = np.random.default_rng(seed)
    image, mask = draw.integers(60, 120, (size, size, 3)), np.zeros((size, size), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size]
    for number in (1, 2):
        y, x = draw.integers(size // 4, 3 * size // 4, 2)
        reach = size // 5
        inside = (abs(rows - y) <= reach) & (abs(columns - x) <= reach)
        if number == 2:
            inside = (rows - y) ** 2 + (columns - x) ** 2 <= reach**2
        mask[inside] = number
        image[inside] = [COLORS[CLASSES[number]][k] + draw.integers(-20, 20) for k in range(3)]
    return image.astype(np.uint8), mask


def write_scenes(folder: Path, count: int, masks: int | None = None, size: int = 32, start: int = 0) -> Path:
    """Write scenes to `images` and `masks` of a folder; all but the first `masks` have none."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        image, mask = make_scene(start + k, size)
        Image.fromarray(image).save(folder / "images" / f"s{k:03}.png")
        if masks is None or k < masks:
            Image.fromarray(mask).save(folder / "masks" / f"s{k:03}.png")
    return folder
