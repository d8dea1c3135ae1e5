"""Texts and images whose words and shapes say which of several classes they have."""

import csv
import random
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("food", "music", "sport")
WORDS = {
    "food": ("soup", "bread", "cheese", "dinner"),
    "music": ("guitar", "choir", "melody", "concert"),
    "sport": ("goal", "match", "runner", "trophy"),
}
COMMON = ("the", "a", "day", "with", "people", "new", "old", "street")


def draw_sets(count: int, seed: int = 0) -> list[list[str]]:
    """Return the classes of each example."""
    chance = random.Random(seed)
    return [[c for c, p in zip(CLASSES, (0.5, 0.3, 0.15), strict=True) if chance.random() < p] for _ in range(count)]


def write_texts(path: Path, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Write a table of texts, of which every fifth has a blank label, and return its rows."""
    chance, rows = random.Random(seed + 1), []
    for i, names in enumerate(draw_sets(count, seed)):
        words = [chance.choice(WORDS[name]) for name in names for _ in range(2)]
        words += [chance.choice(COMMON) for _ in range(4)] + [f"n{i}"]
        chance.shuffle(words)
        rows.append((" ".join(words), "" if i % 5 == 4 else ";".join(names) or ";"))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return rows


def write_images(folder: Path, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Write images with a square of one color for each class and a table of them, and return its rows."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, names in enumerate(draw_sets(count, seed)):
        pixels = random.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        for name in names:
            y, x = random.integers(0, 10, 2)
            pixels[y : y + 6, x : x + 6, CLASSES.index(name)] = 200
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", "" if i % 5 == 4 else ";".join(names) or ";"))
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return rows
