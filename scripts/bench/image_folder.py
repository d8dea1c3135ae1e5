"""Compare loading of JPEG and PNG files (500x375, at 224) with a cache, without one, and with torchvision.

    python scripts/bench/image_folder.py --out scripts/bench/results/image_folder.json

Four methods read all images once, shuffled, in float batches of 64, with one worker per core. Each runs in a process of
its own, in alternating rounds:

- `image_folder`: torchvision's `ImageFolder` with PIL (`Resize`, `CenterCrop`, `ToTensor`) and a `DataLoader`.
- `without_cache`: `ImageDataModule`.
- `first_epoch`: `ImageDataModule` with an empty `cache`, which it fills and then reads.
- `later_epoch`: a second run with the filled cache, which compares each image with its checksum. `again` is the next
  pass, which does not.

Times run from the construction of the loader to its last batch; all files were read once before. The images are crops
of scikit-learn's two photographs with noise, half of them JPEG (quality 90), the others PNG. Ratios are per round.

Memory is a process's own (`RssAnon`, Linux only), without pages of files, which the system can reclaim: `files` is the
memory of the list of files, and `reading` is what is added when all images are read from the cache twice, as uint8
batches. The larger folder has hard links to the files.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from provenance import publish
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from sft_lightning import ImageDataModule
from sft_lightning.utils.cpu import count_cores, retain_freed_memory

METHODS = ("image_folder", "without_cache", "first_epoch", "later_epoch")
SIDE, BATCH = 224, 64


def write_images(folder: Path, count: int, size: int) -> None:
    """Write crops of photographs with noise, each different, to the class folders `train/a` and `train/b`.

    Args:
        folder: Folder to create.
        count: Number of images.
        size: Width of the images in pixels; the height is 3/4 of it.
    """
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        photo = photographs[i % 2]
        width = int(rng.integers(300, photo.width))
        height = width * 3 // 4 if width * 3 // 4 < photo.height else photo.height
        left, top = int(rng.integers(0, photo.width - width + 1)), int(rng.integers(0, photo.height - height + 1))
        crop = photo.resize(
            (size, size * 3 // 4), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        noisy = np.asarray(crop) + rng.normal(0, 3, (size * 3 // 4, size, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        path = folder / "train" / "ab"[i % 2] / f"{i:07}"
        if i // 2 % 2:
            image.save(path.with_suffix(".jpg"), quality=90)
        else:
            image.save(path.with_suffix(".png"))


def link_images(folder: Path, larger: Path, times: int) -> None:
    """Create a folder that has `times` hard links to each image of another."""
    for path in sorted(folder.rglob("*.*")):
        target = larger / path.parent.relative_to(folder)
        target.mkdir(parents=True, exist_ok=True)
        for k in range(times):
            os.link(path, target / f"{k}_{path.name}")


def measure_anonymous_kib() -> int:
    """Return the memory of this process in KiB, without pages of files and without freed memory."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def load_data(folder: Path, cache: Path | None) -> ImageDataModule:
    """Return a data module that trains on all images of a folder."""
    data = ImageDataModule(
        str(folder),
        image_size=SIDE,
        batch_size=BATCH,
        val_size=0,
        num_workers=count_cores(),
        cache=None if cache is None else str(cache),
    )
    data.request.test_size = 0
    data.setup("fit")
    return data


def measure_memory(folder: Path, cache: Path) -> dict[str, float]:
    """Return the MiB of the list of files, and of reading all images from the cache, in this process."""
    start = measure_anonymous_kib()
    data = load_data(folder, cache)
    listed = measure_anonymous_kib()
    train = data.train_dataloader()
    for epoch in range(2):
        train.set_epoch(epoch)
        count = sum(len(batch["labeled"].inputs) for batch in train)
    del train
    return {"count": count, "files": (listed - start) / 1024, "reading": (measure_anonymous_kib() - listed) / 1024}


def measure_here(method: str, folder: Path, cache: Path) -> dict[str, float]:
    """Measure one method, or `memory`, in this process."""
    torch.set_num_threads(count_cores())
    if method == "memory":
        return measure_memory(folder, cache)
    if method == "image_folder":
        retain_freed_memory()
        transform = Compose([Resize(SIDE), CenterCrop(SIDE), ToTensor()])
        images = ImageFolder(str(folder / "train"), transform)
        start = time.perf_counter()
        loader = DataLoader(images, BATCH, shuffle=True, num_workers=count_cores())
        count = sum(len(x) for x, _ in loader)
        return {"images_per_second": count / (time.perf_counter() - start)}
    data = load_data(folder, None if method == "without_cache" else cache)
    retain_freed_memory()  # as a training on the CPU does
    speeds = {}
    start = time.perf_counter()
    train = data.train_dataloader()
    for epoch, name in enumerate(("images_per_second", "again")[: 1 + (method == "later_epoch")]):
        train.set_epoch(epoch)
        count = sum(len(data.on_after_batch_transfer(batch, 0)["labeled"].x) for batch in train)
        assert count == len(data.splits["labeled"])
        speeds[name] = count / (time.perf_counter() - start)
        start = time.perf_counter()
    return speeds


def measure_in_subprocess(method: str, folder: Path, cache: Path) -> dict[str, float]:
    """Measure one method, or `memory`, in a process of its own."""
    command = [sys.executable, __file__, "--method", method, "--folder", str(folder), "--cache", str(cache)]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def compute_ratios(rows: list[dict[str, float]], method: str, against: str) -> list[float]:
    """Return the ratio of the speeds of two methods for each round."""
    return [round(row[method] / row[against], 2) for row in rows]


def measure(args: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Measure all rounds, and then the memory with more files."""
    folder, larger, cache, rows = temporary / "images", temporary / "larger", temporary / "cache", []
    write_images(folder, args.images, args.width)
    for _ in range(args.rounds):
        row: dict[str, float] = {}
        shutil.rmtree(cache, ignore_errors=True)
        for method in METHODS:
            for path in folder.rglob("*.*"):
                path.read_bytes()  # fill the page cache
            result = measure_in_subprocess(method, folder, cache)
            row[method] = result["images_per_second"]
        rows.append({**row, "again": result["again"]})
    link_images(folder, larger, args.times)
    measure_in_subprocess("first_epoch", larger, cache)
    memory = [measure_in_subprocess("memory", images, cache) for images in (folder, larger)]
    return {
        "images_per_second": {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]},
        "later_epoch_by_image_folder": compute_ratios(rows, "later_epoch", "image_folder"),
        "later_epoch_by_without_cache": compute_ratios(rows, "later_epoch", "without_cache"),
        "first_epoch_by_image_folder": compute_ratios(rows, "first_epoch", "image_folder"),
        "first_epoch_by_without_cache": compute_ratios(rows, "first_epoch", "without_cache"),
        "memory_mib": {
            f"{mib['count']} images": {name: round(mib[name], 1) for name in ("files", "reading")} for mib in memory
        },
        "rounds_in_detail": [{name: round(speed, 1) for name, speed in row.items()} for row in rows],
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=500, help="width of the images in pixels; the height is 3/4 of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=10, help="how many times as many files the larger folder has")
    parser.add_argument("--out", type=Path)
    for name in ("method", "folder", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure_here(args.method, Path(args.folder), Path(args.cache))))
        return
    for name in ("method", "folder", "cache"):
        delattr(args, name)
    with tempfile.TemporaryDirectory() as temporary:
        publish(args, measure(args, Path(temporary)))


if __name__ == "__main__":
    main()
