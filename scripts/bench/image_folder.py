"""Images a second from a folder of JPEG and PNG files, 500x375, at 224: with a cache, without, and by torchvision.

    python scripts/bench/image_folder.py --out scripts/bench/results/image_folder.json

Four ways to get all images once, shuffled, in float batches of 64, with as many processes as there are cores, each in
a Python of its own, in alternating rounds:

- `image_folder`: torchvision's `ImageFolder` with PIL (`Resize`, `CenterCrop`, `ToTensor`) and a `DataLoader`.
- `without_cache`: `ImageDataModule`.
- `first_epoch`: the same with `cache`, which is empty: it is filled, and then read.
- `later_epoch`: the same in another run, which finds the cache filled and holds each image against its checksum.
  `again` is the pass after that, which does not.

Seconds run from when the loader is asked for to its last batch; files were read once before. The images are parts of
the two photographs of scikit-learn with some noise, half of them JPEG (quality 90), the others PNG. Ratios are round by
round.

Memory is what a process has for itself (`RssAnon`, Linux only), without the pages of the file, which the system takes
back when it needs them: what the list of files takes (`files`), with a cache or without, and what is added when all
images are read from the cache twice, as uint8 batches (`reading`). The larger folder has hard links to the files.
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
from about import publish
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from sft_lightning import ImageDataModule
from sft_lightning.utils.cpu import count_cores, retain_freed_memory

WAYS = ("image_folder", "without_cache", "first_epoch", "later_epoch")
SIDE, BATCH = 224, 64


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Parts of photographs, no two the same, in two classes."""
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
    for i in range(count):
        draw = np.random.default_rng(i)
        photo = photographs[i % 2]
        width = int(draw.integers(300, photo.width))
        height = width * 3 // 4 if width * 3 // 4 < photo.height else photo.height
        left, top = int(draw.integers(0, photo.width - width + 1)), int(draw.integers(0, photo.height - height + 1))
        part = photo.resize(
            (size, size * 3 // 4), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        noisy = np.asarray(part) + draw.normal(0, 3, (size * 3 // 4, size, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        path = folder / "train" / "ab"[i % 2] / f"{i:07}"
        if i // 2 % 2:
            picture.save(path.with_suffix(".jpg"), quality=90)
        else:
            picture.save(path.with_suffix(".png"))


def link_pictures(folder: Path, larger: Path, times: int) -> None:
    """A folder with so many links to each image."""
    for path in sorted(folder.rglob("*.*")):
        to = larger / path.parent.relative_to(folder)
        to.mkdir(parents=True, exist_ok=True)
        for k in range(times):
            os.link(path, to / f"{k}_{path.name}")


def anonymous_kib() -> int:
    """Memory of this process that is not a part of a file, without what it has freed."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def opened(folder: Path, cache: Path | None) -> ImageDataModule:
    """All images to train on."""
    kept = None if cache is None else str(cache)
    data = ImageDataModule(
        str(folder), image_size=SIDE, batch_size=BATCH, val_size=0, num_workers=count_cores(), cache=kept
    )
    data.request.test_size = 0
    data.setup("fit")
    return data


def memory(folder: Path, cache: Path) -> dict[str, float]:
    """MiB that the list of files takes, and that reading all from the cache adds, in this process."""
    start = anonymous_kib()
    data = opened(folder, cache)
    listed = anonymous_kib()
    train = data.train_dataloader()
    for epoch in range(2):
        train.set_epoch(epoch)
        count = sum(len(batch["labeled"].images) for batch in train)
    del train
    return {"count": count, "files": (listed - start) / 1024, "reading": (anonymous_kib() - listed) / 1024}


def one(way: str, folder: Path, cache: Path) -> dict[str, float]:
    """Measures one way, in this process."""
    torch.set_num_threads(count_cores())
    if way == "memory":
        return memory(folder, cache)
    if way == "image_folder":
        retain_freed_memory()
        views = Compose([Resize(SIDE), CenterCrop(SIDE), ToTensor()])
        pictures = ImageFolder(str(folder / "train"), views)
        start = time.perf_counter()
        loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=count_cores())
        count = sum(len(x) for x, _ in loader)
        return {"images_per_second": count / (time.perf_counter() - start)}
    data = opened(folder, None if way == "without_cache" else cache)
    retain_freed_memory()  # as a training on the CPU does
    found = {}
    start = time.perf_counter()
    train = data.train_dataloader()
    for epoch, name in enumerate(("images_per_second", "again")[: 1 + (way == "later_epoch")]):
        train.set_epoch(epoch)
        count = sum(len(data.on_after_batch_transfer(batch, 0)["labeled"].x) for batch in train)
        assert count == len(data.splits["labeled"])
        found[name] = count / (time.perf_counter() - start)
        start = time.perf_counter()
    return found


def measured(way: str, folder: Path, cache: Path) -> dict[str, float]:
    """Measures one way, in a process of its own."""
    command = [sys.executable, __file__, "--one", way, "--folder", str(folder), "--cache", str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def ratios(rows: list[dict[str, float]], way: str, against: str) -> list[float]:
    """How many times as fast one way is as another, round by round."""
    return [round(row[way] / row[against], 2) for row in rows]


def measure(args: argparse.Namespace, home: Path) -> dict[str, Any]:
    """All rounds, then memory with more files."""
    folder, cache, rows = home / "pictures", home / "cache", []
    write_pictures(folder, args.images, args.width)
    for _ in range(args.rounds):
        row: dict[str, float] = {}
        shutil.rmtree(cache, ignore_errors=True)
        for way in WAYS:
            for path in folder.rglob("*.*"):
                path.read_bytes()
            told = measured(way, folder, cache)
            row[way] = told["images_per_second"]
        rows.append({**row, "again": told["again"]})
    link_pictures(folder, home / "larger", args.times)
    measured("first_epoch", home / "larger", cache)
    sizes = [measured("memory", each, cache) for each in (folder, home / "larger")]
    return {
        "images_per_second": {way: round(statistics.median(row[way] for row in rows), 1) for way in rows[0]},
        "later_epoch_by_image_folder": ratios(rows, "later_epoch", "image_folder"),
        "later_epoch_by_without_cache": ratios(rows, "later_epoch", "without_cache"),
        "first_epoch_by_image_folder": ratios(rows, "first_epoch", "image_folder"),
        "first_epoch_by_without_cache": ratios(rows, "first_epoch", "without_cache"),
        "memory_mib": {
            f"{told['count']} images": {name: round(told[name], 1) for name in ("files", "reading")} for told in sizes
        },
        "rounds_in_detail": [{way: round(speed, 1) for way, speed in row.items()} for row in rows],
    }


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=500, help="of the files, in pixels; 3/4 of it is their height")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=10, help="so many times as many files where memory is compared")
    parser.add_argument("--out", type=Path)
    for name in ("one", "folder", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, Path(args.folder), Path(args.cache))))
        return
    for name in ("one", "folder", "cache"):
        delattr(args, name)
    with tempfile.TemporaryDirectory() as home:
        publish(args, measure(args, Path(home)))


if __name__ == "__main__":
    main()
