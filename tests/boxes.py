"""Small composed scenes with exact boxes, for the tests of detection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ["square", "disc"]
_COLORS = [[200, 40, 40], [40, 200, 40]]
Box = tuple[int, int, int, int]


def make_boxes_scene(seed: int, size: int = 64) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Box]]]:
    """Red squares and green discs on gray noise, uint8 (size, size, 3), with the class and x1, y1, x2, y2 of each.

    Shapes lie in different quarters, so that none hides another.
    """
    draw = np.random.default_rng(seed)
    image = draw.integers(60, 120, (size, size, 3))
    rows, columns = np.mgrid[:size, :size] + 0.5
    objects: list[tuple[int, Box]] = []
    for quarter in draw.permutation(4)[: int(draw.integers(1, 4))]:
        side, number = int(draw.integers(size // 6, size // 3)), int(draw.integers(2))
        x, y = (int(draw.integers(0, size // 2 - side)) + size // 2 * k for k in divmod(int(quarter), 2))
        inside = (columns > x) & (columns < x + side) & (rows > y) & (rows < y + side)
        if number == 1:
            inside = (rows - y - side / 2) ** 2 + (columns - x - side / 2) ** 2 <= (side / 2) ** 2
        image[inside] = [channel + draw.integers(-20, 20) for channel in _COLORS[number]]
        objects.append((number, (x, y, x + side, y + side)))
    return image.astype(np.uint8), objects


def write_boxes_folder(
    folder: Path, counts: dict[str, int], size: int = 64, unlabeled: int = 0, start: int = 0, suffix: str = ".png"
) -> Path:
    """Write scenes as COCO has them: write_boxes_folder(path, {"train": 8, "test": 4}, unlabeled=10).

    Unlabeled scenes lie in `images/train` without being listed.
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        images, annotations = [], []
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for seed in range(start, start + count + (unlabeled if split == "train" else 0)):
            image, objects = make_boxes_scene(seed, size)
            name = f"s{seed:03}{suffix}"
            Image.fromarray(image).save(folder / "images" / split / name)
            if seed < start + count:
                images.append({"id": seed, "file_name": name, "width": size, "height": size})
                annotations += [make_annotation(seed, number, box) for number, box in objects]
        start += count + (unlabeled if split == "train" else 0)
        content = {
            "images": images,
            "annotations": [{"id": k, **one} for k, one in enumerate(annotations, 1)],
            "categories": [{"id": 3 * k + 1, "name": name} for k, name in enumerate(CLASSES)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def make_annotation(image: int, number: int, box: Box, **others: Any) -> dict[str, Any]:
    """Annotation of COCO of an object, whose class has the category 3 * number + 1."""
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image, "category_id": 3 * number + 1, "bbox": bbox, "iscrowd": 0, **others}
