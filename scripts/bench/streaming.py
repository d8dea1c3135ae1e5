"""Measure how speed, memory and startup time of streaming from shards grow with the number of images.

    python scripts/bench/streaming.py --out scripts/bench/results/streaming.json

It generates gray JPEGs of 32x32, each different, and writes them as shards of 1,000 and as a folder. A tenth has
labels; 100 more are for validation and 100 for test. For each size and kind, a process of its own sets up the data
module and reads batches of 64 labeled and 448 unlabeled images without workers, in training order, until `--seconds`
have passed or `--images` are read. `by seed` divides the same images into all splits by seed.

The result has images per second, seconds of `setup`, and RssAnon of /proc/self/status in MiB (Linux only): before the
data module is created, after `setup`, and the maximum while images are read. Growth is that of the maximum from the
first to the last size, in bytes per image.
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
from PIL import Image
from provenance import publish

from sft_lightning.data.mmap_columns import SelectedTexts
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.images import EncodedImages
from sft_lightning.data.vision.write_shards import write_shards

BY_SEED = "shards, splits by seed"
KINDS = ["shards", BY_SEED, "folder"]
MEASURE_SCRIPT = """
import json, sys, time
from pathlib import Path
import litdata, torch
from sft_lightning import ImageDataModule
from sft_lightning.data.contract import BatchRequest

def mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

class SemiSupervisedData(ImageDataModule):
    _request = BatchRequest(("labeled", "unlabeled"))

settings = json.loads(sys.argv[1])
max_images, seconds = settings.pop("max_images"), settings.pop("seconds")
before = mib()
start = time.perf_counter()
loading = {"num_workers": 0, "batch_size": 64, "unlabeled_ratio": 7}
data = SemiSupervisedData(image_size=32, channels=1, on_leak="drop", **loading, **settings)
data.setup("fit")
setup_seconds = time.perf_counter() - start
after = peak = mib()
loader, images, start = data.train_dataloader(), 0, time.perf_counter()
while images < max_images and time.perf_counter() - start < seconds:
    for batch in loader:
        images += sum(len(raw.indices) for raw in batch.values())
        peak = max(peak, mib())
        if images >= max_images or time.perf_counter() - start >= seconds:
            break
    loader.set_epoch(loader.epoch + 1)
rate = images / (time.perf_counter() - start)
result = {"images": images, "images_per_second": round(rate), "setup_seconds": round(setup_seconds, 2)}
result |= {"rss_anon_mib": {"before": round(before, 1), "after_setup": round(after, 1), "most": round(peak, 1)}}
print(json.dumps(result))
"""


class GeneratedImages(EncodedImages):
    """JPEG images that are generated when they are read."""

    def __init__(self, count: int, first: int) -> None:
        """Describe the images.

        Args:
            count: Number of images.
            first: Number of the first image, which seeds its content.
        """
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def file(self, index: int) -> BytesIO:
        """Generate 8x8 blocks of random gray."""
        gray = np.random.default_rng(self.first + index).integers(0, 256, (8, 8), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(gray.repeat(4, 0).repeat(4, 1)).save(file, "JPEG")
        return file

    def path_of(self, index: int) -> Path:
        """Return the number of an image as its path."""
        return Path(str(index))

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Return an empty mapping: all images are readable."""
        return {}

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Return zeros, because sizes are not needed."""
        return [0] * len(indices)

    def digest(self) -> str:
        """Return an empty digest, because nothing is compared."""
        return ""

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Return an empty list, because nothing is compared."""
        return []

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "GeneratedImages":
        """Raise an error, because shards are written from one source.

        Raises:
            TypeError: Always.
        """
        raise TypeError("generated images cannot be joined")


class GeneratedSource(Source):
    """A source of generated images, as four splits or as one."""

    def __init__(self, count: int, one_split: bool) -> None:
        """Describe the source.

        Args:
            count: Number of labeled and unlabeled images.
            one_split: Whether all images, including those for validation and test, are in `train`.
        """
        self.name, self.class_names, self.image_shape = f"{count} generated", tuple("0123456789"), (1, 32, 32)
        sizes = {"train": count // 10, "unlabeled": count - count // 10, "val": 100, "test": 100}
        self._sizes = {"train": count + 200} if one_split else sizes

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split."""
        splits, first = {}, 0
        for name, count in self._sizes.items():
            labels = torch.arange(count) % 10 if name != "unlabeled" else torch.full((count,), -1)
            names = [f"{name}/{i:09}.jpg" for i in range(count)]
            splits[name] = Examples(GeneratedImages(count, first), SelectedTexts((names, range(count))), labels)
            first += count
        return splits


def write_folder(count: int, folder: Path) -> None:
    """Write generated images as files in a folder for each split and class."""
    for split, examples in GeneratedSource(count, False).load().items():
        for i, label in enumerate(examples.labels.tolist()):
            assert isinstance(examples.storage, GeneratedImages)
            path = folder / split / (str(label) if label >= 0 else "") / f"{i:09}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(examples.storage.file(i).getvalue())


def measure_in_subprocess(**settings: Any) -> dict[str, Any]:
    """Measure one size and kind in a process of its own.

    Args:
        settings: Settings of the data module, and `max_images` and `seconds`.
    """
    command = [sys.executable, "-c", MEASURE_SCRIPT, json.dumps(settings)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def write_data(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """Write the images of one kind and return the settings of the data module that read them."""
    if kind == "folder":
        write_folder(count, folder)
        return {"source": str(folder)}
    one_split = kind == BY_SEED
    write_shards(GeneratedSource(count, one_split), folder)
    split_settings = {"val_size": 100, "test_size": 100, "num_labels": count // 10} if one_split else {}
    return {"source": str(folder), **split_settings}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--images", type=int, default=200_000, help="maximum number of images to read")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {kind: {} for kind in args.kinds}
    for kind, by_size in results.items():
        for count in args.sizes:
            with tempfile.TemporaryDirectory() as temporary:
                settings = write_data(kind, count, Path(temporary) / "data")
                result = measure_in_subprocess(**settings, max_images=args.images, seconds=args.seconds)
            by_size[f"{count:,}"] = result
            sys.stderr.write(f"{kind}, {count:,}: {result}\n")
    first, last = (f"{args.sizes[k]:,}" for k in (0, -1))
    added_images = max(1, args.sizes[-1] - args.sizes[0])
    peaks = {
        kind: [by_size[size]["rss_anon_mib"]["most"] for size in (first, last)] for kind, by_size in results.items()
    }
    growth = {kind: round((b - a) * 2**20 / added_images) for kind, (a, b) in peaks.items()}
    publish(args, {"found": results, "bytes_for_each_image": growth})


if __name__ == "__main__":
    main()
