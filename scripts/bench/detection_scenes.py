"""Compose scenes with exact boxes: textured shapes of five classes over noise, as COCO has them.

    python scripts/bench/detection_scenes.py my_scenes --train 400 --unlabeled 400 --test 100 --size 128

The shapes are those of `shapes_scenes.py`, small and large, and hide each other in part: at least half of each stays
visible, and its box is tight around that. A seed gives the same scenes on every machine. The folder gets
`annotations/instances_train.json` and `images/train`, and the same of `test`; unlabeled scenes lie in `images/train`
without being listed. `--size` may be larger for more detail; `--most` sets how many shapes a scene has at most, and a
tenth of the scenes has none.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from shapes_scenes import CLASSES, draw_background, draw_shape, expose

_VISIBLE = 0.5  # smallest share of a shape that stays visible
_LEAST = 12  # pixels that a shape covers
_EMPTY = 0.1  # share of scenes without a shape
Box = tuple[int, int, int, int]


def compose(seed: int, size: int, most: int = 6) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Box]]]:
    """Compose one scene.

    Args:
        seed: Seed of the scene.
        size: Side in pixels.
        most: Largest number of shapes.

    Returns:
        Image, uint8 (size, size, 3), and the number of the class and x1, y1, x2, y2 of each shape, classes from 1.
    """
    draw = np.random.default_rng([25, seed])
    image = draw_background(draw, size)
    shapes: list[tuple[int, int, npt.NDArray[np.bool_]]] = []  # class, area, visible pixels
    for _ in range(0 if draw.random() < _EMPTY else int(draw.integers(1, most + 1))):
        number, inside, painted = draw_shape(draw, size, (0.05, 0.22))
        rest = [(kind, area, seen & ~inside) for kind, area, seen in shapes]
        if inside.sum() < _LEAST or any(seen.sum() < _VISIBLE * area for _, area, seen in rest):
            continue
        shapes = [*rest, (number, int(inside.sum()), inside)]
        image = np.where(inside[..., None], painted, image)
    return expose(draw, image), [(number, _surround(seen)) for number, _, seen in shapes]


def _surround(seen: npt.NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def write(folder: Path, counts: dict[str, int], size: int, most: int = 6, start: int = 0) -> Path:
    """Write scenes with their boxes.

    Args:
        folder: Folder that gets `annotations` and `images`.
        counts: Number of scenes of `train`, `unlabeled`, `val` and `test`.
        size: Side in pixels.
        most: Largest number of shapes of a scene.
        start: Seed of the first scene.
    """
    contents: dict[str, dict[str, Any]] = {}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        place = folder / "images" / ("train" if split == "unlabeled" else split)
        place.mkdir(parents=True, exist_ok=True)
        for seed in range(start, start + count):
            image, boxes = compose(seed, size, most)
            Image.fromarray(image).save(place / f"{seed:05}.png")
            if split != "unlabeled":
                _add(contents.setdefault(split, {"images": [], "annotations": []}), seed, size, boxes)
        start += count
    for split, content in contents.items():
        content["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES) if k]
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _add(content: dict[str, Any], seed: int, size: int, boxes: list[tuple[int, Box]]) -> None:
    content["images"].append({"id": seed, "file_name": f"{seed:05}.png", "width": size, "height": size})
    for number, (x1, y1, x2, y2) in boxes:
        bbox = [x1, y1, x2 - x1, y2 - y1]
        content["annotations"].append({
            "id": len(content["annotations"]) + 1, "image_id": seed, "category_id": number, "bbox": bbox,
            "area": bbox[2] * bbox[3], "iscrowd": 0,
        })  # fmt: skip


def main() -> None:
    """Write a folder of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--unlabeled", type=int, default=400)
    parser.add_argument("--val", type=int, default=50)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--most", type=int, default=6)
    parser.add_argument("--start", type=int, default=0, help="seed of the first scene")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in ("train", "unlabeled", "val", "test")}
    print(write(args.folder, counts, args.size, args.most, args.start))


if __name__ == "__main__":
    main()
