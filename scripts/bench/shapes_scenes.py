"""Compose scenes with exact masks: textured shapes of five classes over noise.

    python scripts/bench/shapes_scenes.py my_scenes --count 600 --size 64

Nothing here is a photograph. Shapes (disc, square, triangle, ring, cross) overlap; each class has a shape, and a
texture and a hue that vary so much that neither decides alone: hues of the classes overlap, and textures (plain,
stripes, checks) are drawn at random. The background is smooth noise of several scales between two random colors. A seed
gives the same scenes on every machine. The first `--test` scenes are the test split, the rest is for training.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")
_HUES = (0.0, 0.16, 0.33, 0.55, 0.75)
_Pixels = npt.NDArray[np.float64]


def smooth_noise(draw: np.random.Generator, size: int) -> _Pixels:
    """Return noise of several scales, (size, size), from 0 to 1."""
    total = np.zeros((size, size))
    for cells in (3, 6, 12):
        coarse = Image.fromarray(draw.random((cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / cells
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low))


def color_of(hue: float, saturation: float, value: float) -> _Pixels:
    """Return red, green and blue of a color in HSV, each from 0 to 1."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return np.asarray(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def is_inside(kind: str, across: _Pixels, down: _Pixels) -> npt.NDArray[np.bool_]:
    """Return which pixels a shape of half-width 1 covers, at coordinates from its center."""
    radius = np.hypot(across, down)
    square = np.maximum(abs(across), abs(down)) <= 0.85
    return np.asarray(
        {
            "disc": radius <= 1,
            "square": square,
            "triangle": (down <= 0.7) & (down >= 2.2 * abs(across) - 1),
            "ring": (radius <= 1) & (radius >= 0.55),
            "cross": square & (np.minimum(abs(across), abs(down)) <= 0.3),
        }[kind]
    )


def draw_background(draw: np.random.Generator, size: int) -> _Pixels:
    """Return smooth noise between two random colors, (size, size, 3), from 0 to 1."""
    first, second = (color_of(draw.random(), 0.35 * draw.random(), 0.25 + 0.6 * draw.random()) for _ in range(2))
    share = smooth_noise(draw, size)[..., None]
    return np.asarray(first * share + second * (1 - share))


def draw_shape(
    draw: np.random.Generator, size: int, reaches: tuple[float, float]
) -> tuple[int, npt.NDArray[np.bool_], _Pixels]:
    """Draw a shape at a random place.

    Args:
        draw: Random generator.
        size: Side of the scene in pixels.
        reaches: Smallest and largest half-width as a share of the side.

    Returns:
        Number of its class, the pixels that it covers, (size, size), and its colors, (size, size, 3).
    """
    rows, columns = np.mgrid[:size, :size] + 0.5
    number = int(draw.integers(1, len(CLASSES)))
    reach = size * draw.uniform(*reaches)
    y, x, angle = *draw.uniform(0.1 * size, 0.9 * size, 2), draw.uniform(0, 2 * np.pi)
    across = ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)) / reach
    down = ((rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)) / reach
    inside = is_inside(CLASSES[number], across, down)
    hue = (_HUES[number - 1] + draw.normal(0, 0.09)) % 1
    colors = [color_of(hue, draw.uniform(0.35, 0.9), draw.uniform(0.35, 0.95)) for _ in range(2)]
    period = draw.uniform(0.25, 0.7)
    texture = {
        0: np.zeros((size, size), dtype=bool),
        1: (across % period) < period / 2,
        2: ((across % period) < period / 2) ^ ((down % period) < period / 2),
    }[int(draw.integers(3))]
    painted = np.where(texture[..., None], colors[0], colors[1]) * (0.85 + 0.3 * smooth_noise(draw, size)[..., None])
    return number, inside, painted


def expose(draw: np.random.Generator, image: _Pixels) -> npt.NDArray[np.uint8]:
    """Return an image with a random brightness and noise, uint8."""
    image = image * draw.uniform(0.7, 1.15) + draw.normal(0, 0.04, image.shape)
    return np.asarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def compose(seed: int, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Compose one scene.

    Args:
        seed: Seed of the scene.
        size: Side in pixels.

    Returns:
        Image, uint8 (size, size, 3), and classes, uint8 (size, size).
    """
    draw = np.random.default_rng([17, seed])
    image = draw_background(draw, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    for _ in range(int(draw.integers(2, 6))):
        number, inside, painted = draw_shape(draw, size, (0.1, 0.24))
        image = np.where(inside[..., None], painted, image)
        mask[inside] = number
    return expose(draw, image), mask


def write(folder: Path, count: int, size: int, test: int, start: int = 0) -> Path:
    """Write scenes with their masks, and the names of the classes.

    Args:
        folder: Folder that gets `train`, `test` and `classes.txt`.
        count: Number of scenes.
        size: Side in pixels.
        test: Number of scenes of the test split.
        start: Seed of the first scene.
    """
    for k in range(count):
        image, mask = compose(start + k, size)
        split = folder / ("test" if k < test else "train")
        for kind, content in (("images", image), ("masks", mask)):
            (split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(split / kind / f"{start + k:05}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    """Write a folder of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--start", type=int, default=0, help="seed of the first scene")
    args = parser.parse_args()
    print(write(args.folder, args.count, args.size, args.test, args.start))


if __name__ == "__main__":
    main()
