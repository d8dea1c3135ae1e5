"""What `audit` takes and what it is worth: seconds, false alarms, copies that it finds, wrong labels that it finds.

    python scripts/bench/audit.py --out scripts/bench/results/audit.json

Duplicates are looked for in Fashion-MNIST (70,000 images), among the 10,000 MNIST digits of the package, each of
which was written by hand, so that every alarm is a false one, and among changed copies of 2,000 test images of
Fashion-MNIST. The number of pairs that a 64-bit perceptual hash calls alike stands beside them. Then 5 % of the labels
are replaced by others, and the suspects are compared with them; wrong labels that the data has by itself count as
false alarms.
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from about import publish
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from sft_lightning import ImageDataModule
from sft_lightning.audit import label_checks
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import NAMES, Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.image_stats import Pixels, SplitStats, compute_image_stats, stack_thumbnails
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.near_duplicates import find_near_duplicates

COPIED, FLIPPED = 2000, 0.05


def looked(source: str) -> tuple[ImageDataModule, list[SplitStats]]:
    """A source and the looks at its splits."""
    data = ImageDataModule(source)
    data.request = replace(data.request, on_leak="keep")
    data.setup("fit")
    return data, [compute_image_stats(name, data.splits[name], Geometry(channels=1)) for name in NAMES]


def of_tensors(name: str, pictures: list[Pixels]) -> SplitStats:
    """A split of images (H, W)."""
    images = TensorStorage(torch.from_numpy(np.stack(pictures))[:, None])
    ids = [f"{name}/{i}" for i in range(len(pictures))]
    part = Examples(images, ids, torch.full((len(pictures),), -1))
    return compute_image_stats(name, Split(part, list(range(len(pictures)))), Geometry(channels=1))


def encoded(quality: int) -> Callable[[Pixels], Pixels]:
    """To JPEG and back."""

    def change(picture: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return change


def noisy(deviation: float) -> Callable[[Pixels], Pixels]:
    """Normal noise, of a deviation in gray levels."""
    generator = np.random.default_rng(0)
    return lambda x: (x + generator.normal(0, deviation, x.shape)).clip(0, 255).astype(np.uint8)


def enlarged(picture: Pixels) -> Pixels:
    """Twice as large."""
    return np.asarray(Image.fromarray(picture).resize((56, 56), Image.Resampling.BICUBIC))


def shifted(picture: Pixels) -> Pixels:
    """By a pixel."""
    return np.roll(picture, 1, 1)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG, quality 90": encoded(90),
    "JPEG, quality 75": encoded(75),
    "JPEG, quality 50": encoded(50),
    "noise, 3 gray levels": noisy(3),
    "noise, 8 gray levels": noisy(8),
    "20 % brighter": lambda x: (x * 1.2).clip(0, 255).astype(np.uint8),
    "twice the size": enlarged,
    "shifted by a pixel (not meant to be found)": shifted,
}


def copies(source: str) -> dict[str, float]:
    """Share of changed copies that is found, by the change."""
    images = ImageDataModule(source).source.load()["test"].images
    assert isinstance(images, TensorStorage)
    originals = list(images.data[:COPIED, 0].numpy())
    one = of_tensors("test", originals)
    found = {}
    for name, change in CHANGES.items():
        other = of_tensors("labeled", [change(picture) for picture in originals])
        pairs = [pair for both in find_near_duplicates([one, other]) for pair in both]
        hits = {pair.first[1] for pair in pairs if pair.second[0] is other and pair.first == (one, pair.second[1])}
        found[name] = len(hits) / COPIED
    return found


def hash_pairs(seen: list[SplitStats], distance: int = 6) -> int:
    """Pairs of images whose perceptual hashes differ in at most so many bits."""
    pictures = np.concatenate([stack_thumbnails(one, range(len(one.images))) for one in seen if one.images])[..., 0]
    low = dctn(pictures.astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(pictures), 64)
    hashes: NDArray[np.uint64] = np.packbits(low > np.median(low[:, 1:], axis=1, keepdims=True), 1).view(np.uint64)
    alike = 0
    for k in range(0, len(hashes), 500):
        alike += int((np.bitwise_count(hashes[k : k + 500] ^ hashes[:, 0]) <= distance).sum())
    return (alike - len(hashes)) // 2  # without each with itself, and each pair once


def alarms(source: str) -> dict[str, Any]:
    """Duplicates of a source, and the seconds that they take."""
    began = time.perf_counter()
    _, seen = looked(source)
    middle = time.perf_counter()
    exact, near = find_near_duplicates(seen)
    end = time.perf_counter()
    pictures = sum(len(one.images) for one in seen)
    return {
        "pictures": pictures,
        "seconds_of_looking": round(middle - began, 1),
        "seconds_of_comparing": round(end - middle, 1),
        "exact": len(exact),
        "near": len(near),
        "near_of_another_class": sum(p.first[0].label(p.first[1]) != p.second[0].label(p.second[1]) for p in near),
        "pairs_by_perceptual_hash": hash_pairs(seen),
    }


def flipped(source: str) -> dict[str, Any]:
    """How many of the labels that were replaced are among the suspects, and how many of the suspects were replaced."""
    data, seen = looked(source)
    generator = np.random.default_rng(0)
    wrong: set[tuple[str, int]] = set()
    for one in seen:
        given = one.split.part.labels = one.split.part.labels.clone()
        for i in generator.permutation(len(one.images))[: round(FLIPPED * len(one.images))].tolist():
            k = one.split.indices[i]
            given[k] = (given[k] + 1 + int(generator.integers(data.num_classes - 1))) % data.num_classes
            wrong.add((one.name, i))
    began = time.perf_counter()
    judged = label_checks.check_labels(seen, data, None, 0)
    seconds = time.perf_counter() - began
    truth = np.array([(one.name, i) in wrong for one, i in judged.examples])
    told = {"labels": len(truth), "flipped": len(wrong), "seconds": round(seconds, 1), "told": judged.summary}
    own = label_checks.apply_confident_learning(judged.labels, judged.probabilities)
    for name, suspects in (("own", own), ("cleanlab", judged.suspects if "cleanlab" in judged.summary else None)):
        if suspects is not None:
            hits, first = truth[suspects].sum(), truth[suspects[: len(wrong)]]
            told[name] = {
                "suspects": len(suspects),
                "precision": round(float(hits / len(suspects)), 3),
                "recall": round(float(hits / len(wrong)), 3),
                "precision_of_the_first": round(float(first.mean()), 3),
                "of_the_first": len(first),
            }
    return told


def main() -> None:
    """Measures all and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    told = {
        "Fashion-MNIST": alarms("FashionMNIST"),
        "digits (every alarm is a false one)": alarms("sample-digits"),
        "changed copies found": copies("FashionMNIST"),
        "flipped labels, Fashion-MNIST": flipped("FashionMNIST"),
        "flipped labels, sample": flipped("sample"),
    }
    publish(args, told)


if __name__ == "__main__":
    main()
