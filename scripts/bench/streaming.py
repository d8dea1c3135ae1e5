"""How streaming from shards grows with the number of images: images a second, memory of the process, time to start.

    python scripts/bench/streaming.py --out scripts/bench/results/streaming.json

Gray JPEGs of 32x32, each of its own, are generated, and written as shards of 1,000 and as a folder. A tenth has labels,
the rest none; 100 more are for validation and 100 for test. In a process of its own for each size and kind, the data
module is set up, and batches of 64 labeled and 448 unlabeled images are read by the process itself, in training order,
until `--seconds` have passed or `--images` are read. `by seed` chooses all splits of the same images from one part.

Told are images a second, seconds of `setup`, and RssAnon of /proc/self/status in MiB (Linux only): before the data
module is made, after `setup`, and the most while images are read. Growth is that of the last, from the first to the
last size, in bytes for each image.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from about import publish
from PIL import Image

from sft_lightning.data.mmap_columns import SelectedTexts
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.images import EncodedImages
from sft_lightning.data.vision.write_shards import write_shards

BY_SEED = "shards, splits by seed"
KINDS = ["shards", BY_SEED, "folder"]
ONE = """
import json, sys, time
from pathlib import Path
import litdata, torch
from sft_lightning import ImageDataModule
from sft_lightning.data.contract import BatchRequest

def mib():
    words = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon")).split()
    return int(words[1]) / 1024

class Both(ImageDataModule):
    _request = BatchRequest(("labeled", "unlabeled"))

settings = json.loads(sys.argv[1])
most, seconds = settings.pop("most"), settings.pop("seconds")
before = mib()
start = time.perf_counter()
data = Both(image_size=32, channels=1, num_workers=0, batch_size=64, unlabeled_ratio=7, on_leak="drop", **settings)
data.setup("fit")
ready = time.perf_counter() - start
after = peak = mib()
loader, seen, start = data.train_dataloader(), 0, time.perf_counter()
while seen < most and time.perf_counter() - start < seconds:
    for batch in loader:
        seen += sum(len(part.images) for part in batch.values())
        peak = max(peak, mib())
        if seen >= most or time.perf_counter() - start >= seconds:
            break
    loader.set_epoch(loader.epoch + 1)
rate = seen / (time.perf_counter() - start)
found = {"images": seen, "images_per_second": round(rate), "setup_seconds": round(ready, 2)}
found |= {"rss_anon_mib": {"before": round(before, 1), "after_setup": round(after, 1), "most": round(peak, 1)}}
print(json.dumps(found))
"""


class Made(EncodedImages):
    """Storage that are generated when they are read."""

    def __init__(self, count: int, first: int) -> None:
        """Names them by number."""
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def file(self, index: int) -> BytesIO:
        """Blocks of gray, and the number in the lowest bits of a few pixels."""
        gray = np.random.default_rng(self.first + index).integers(0, 256, (8, 8), dtype=np.uint8)
        into = BytesIO()
        Image.fromarray(gray.repeat(4, 0).repeat(4, 1)).save(into, "JPEG")
        return into

    def place(self, index: int) -> Path:
        """A name."""
        return Path(str(index))

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """None."""
        return {}

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Not known."""
        return [0] * len(indices)

    def digest(self) -> str:
        """Not known."""
        return ""

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Not known."""
        return []

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "Made":
        """Nobody asks for it: shards are written of one source."""
        raise TypeError("made pictures are not joined with others")


class MadeSource(Source):
    """So many images, as four parts or as one."""

    def __init__(self, count: int, one: bool) -> None:
        """Names them."""
        self.name, self.class_names, self.image_shape = f"{count} made", tuple("0123456789"), (1, 32, 32)
        sizes = {"train": count // 10, "unlabeled": count - count // 10, "val": 100, "test": 100}
        self._sizes = {"train": count + 200} if one else sizes

    def load(self) -> dict[str, Examples]:
        """The parts."""
        parts, first = {}, 0
        for name, count in self._sizes.items():
            labels = torch.arange(count) % 10 if name != "unlabeled" else torch.full((count,), -1)
            names = [f"{name}/{i:09}.jpg" for i in range(count)]
            parts[name] = Examples(Made(count, first), SelectedTexts((names, range(count))), labels)
            first += count
        return parts


def folder(count: int, path: Path) -> Path:
    """The same images as files."""
    for split, part in MadeSource(count, False).load().items():
        for i, label in enumerate(part.labels.tolist()):
            assert isinstance(part.images, Made)
            place = path / split / (str(label) if label >= 0 else "") / f"{i:09}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(part.images.file(i).getvalue())
    return path


def measure(**settings: Any) -> dict[str, Any]:
    """One size and kind, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", ONE, json.dumps(settings)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def made(kind: str, count: int, place: Path) -> dict[str, Any]:
    """Settings of the data module for a kind, whose images are written."""
    if kind == "folder":
        return {"source": str(folder(count, place))}
    one = kind == BY_SEED
    write_shards(MadeSource(count, one), place)
    chosen = {"val_size": 100, "test_size": 100, "num_labels": count // 10} if one else {}
    return {"source": str(place), **chosen}


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--images", type=int, default=200_000, help="so many are read at most")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {kind: {} for kind in args.kinds}
    for kind, own in found.items():
        for count in args.sizes:
            with tempfile.TemporaryDirectory() as place:
                settings = made(kind, count, Path(place) / "made")
                own[f"{count:,}"] = measure(**settings, most=args.images, seconds=args.seconds)
            sys.stderr.write(f"{kind}, {count:,}: {own[f'{count:,}']}\n")
    first, last = (f"{args.sizes[k]:,}" for k in (0, -1))
    more = max(1, args.sizes[-1] - args.sizes[0])
    most = {kind: [own[size]["rss_anon_mib"]["most"] for size in (first, last)] for kind, own in found.items()}
    growth = {kind: round((b - a) * 2**20 / more) for kind, (a, b) in most.items()}
    publish(args, {"found": found, "bytes_for_each_image": growth})


if __name__ == "__main__":
    main()
