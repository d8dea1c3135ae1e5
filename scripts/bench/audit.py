"""Measure the cost and accuracy of `audit`: seconds, false alarms, and the copies and wrong labels that it finds.

    python scripts/bench/audit.py --out scripts/bench/results/audit.json

It searches for duplicates in Fashion-MNIST (70,000 images), among the 10,000 MNIST digits of the package, where every
alarm is a false one because each digit was written by hand, and among modified copies of 2,000 test images of
Fashion-MNIST. For comparison, it counts the pairs that a 64-bit perceptual hash considers duplicates. Then it replaces
5 % of the labels and compares the suspects with them; labels that are wrong in the original data count as false alarms.
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
from numpy.typing import NDArray
from PIL import Image
from provenance import publish
from scipy.fft import dctn

from sft_lightning import ImageDataModule
from sft_lightning.audit import label_checks
from sft_lightning.audit.image_checks import ImageChecks
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import NAMES, Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.image_stats import ImageSplitStats, Pixels, compute_image_stats, stack_thumbnails
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.near_duplicates import find_near_duplicates

COPIED, FLIPPED = 2000, 0.05


def load_stats(source: str) -> tuple[ImageDataModule, list[ImageSplitStats]]:
    """Return the data module of a source and the image statistics of its splits."""
    data = ImageDataModule(source)
    data.request = replace(data.request, on_leak="keep")
    data.setup("fit")
    return data, [compute_image_stats(name, data.splits[name], Geometry(channels=1)) for name in NAMES]


def make_stats(name: str, images: list[Pixels]) -> ImageSplitStats:
    """Return the image statistics of a split that holds the given images (H, W)."""
    storage = TensorStorage(torch.from_numpy(np.stack(images))[:, None])
    ids = [f"{name}/{i}" for i in range(len(images))]
    examples = Examples(storage, ids, torch.full((len(images),), -1))
    return compute_image_stats(name, Split(examples, list(range(len(images)))), Geometry(channels=1))


def jpeg_transform(quality: int) -> Callable[[Pixels], Pixels]:
    """Return a function that encodes an image as JPEG and decodes it."""

    def compress(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return compress


def noise_transform(deviation: float) -> Callable[[Pixels], Pixels]:
    """Return a function that adds normal noise of the given standard deviation in gray levels."""
    generator = np.random.default_rng(0)
    return lambda x: (x + generator.normal(0, deviation, x.shape)).clip(0, 255).astype(np.uint8)


def enlarge(image: Pixels) -> Pixels:
    """Double the side of an image of 28x28 pixels."""
    return np.asarray(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC))


def shift(image: Pixels) -> Pixels:
    """Move an image one pixel to the right."""
    return np.roll(image, 1, 1)


TRANSFORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG, quality 90": jpeg_transform(90),
    "JPEG, quality 75": jpeg_transform(75),
    "JPEG, quality 50": jpeg_transform(50),
    "noise, 3 gray levels": noise_transform(3),
    "noise, 8 gray levels": noise_transform(8),
    "20 % brighter": lambda x: (x * 1.2).clip(0, 255).astype(np.uint8),
    "twice the size": enlarge,
    "shifted by a pixel (not meant to be found)": shift,
}


def measure_copies(source: str) -> dict[str, float]:
    """Return the share of modified copies that are detected, by transform."""
    images = ImageDataModule(source).source.load()["test"].storage
    assert isinstance(images, TensorStorage)
    originals = list(images.data[:COPIED, 0].numpy())
    original_stats = make_stats("test", originals)
    recall = {}
    for name, transform in TRANSFORMS.items():
        copy_stats = make_stats("labeled", [transform(image) for image in originals])
        pairs = [pair for both in find_near_duplicates([original_stats, copy_stats]) for pair in both]
        hits = {
            pair.first[1]
            for pair in pairs
            if pair.second[0] is copy_stats and pair.first == (original_stats, pair.second[1])
        }
        recall[name] = len(hits) / COPIED
    return recall


def count_hash_pairs(stats: list[ImageSplitStats], distance: int = 6) -> int:
    """Count the pairs of images whose 64-bit perceptual hashes differ in at most `distance` bits."""
    images = np.concatenate([stack_thumbnails(split, range(len(split.examples))) for split in stats if split.examples])
    low = dctn(images[..., 0].astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(images), 64)
    hashes: NDArray[np.uint64] = np.packbits(low > np.median(low[:, 1:], axis=1, keepdims=True), 1).view(np.uint64)
    matches = 0
    for k in range(0, len(hashes), 500):
        matches += int((np.bitwise_count(hashes[k : k + 500] ^ hashes[:, 0]) <= distance).sum())
    return (matches - len(hashes)) // 2  # an image is not a duplicate of itself, and each pair was counted twice


def measure_duplicates(source: str) -> dict[str, Any]:
    """Count the duplicates that `audit` finds in a source, and time it."""
    start = time.perf_counter()
    _, stats = load_stats(source)
    loaded = time.perf_counter()
    exact, near = find_near_duplicates(stats)
    end = time.perf_counter()
    return {
        "pictures": sum(len(split.examples) for split in stats),
        "seconds_of_looking": round(loaded - start, 1),
        "seconds_of_comparing": round(end - loaded, 1),
        "exact": len(exact),
        "near": len(near),
        "near_of_another_class": sum(p.first[0].label(p.first[1]) != p.second[0].label(p.second[1]) for p in near),
        "pairs_by_perceptual_hash": count_hash_pairs(stats),
    }


def measure_wrong_labels(source: str) -> dict[str, Any]:
    """Replace labels of a source and return precision and recall of the suspects that `audit` names."""
    data, stats = load_stats(source)
    generator = np.random.default_rng(0)
    wrong: set[tuple[str, int]] = set()
    for entry in stats:
        labels = entry.split.part.labels = entry.split.part.labels.clone()
        for i in generator.permutation(len(entry.examples))[: round(FLIPPED * len(entry.examples))].tolist():
            k = entry.split.indices[i]
            labels[k] = (labels[k] + 1 + int(generator.integers(data.num_classes - 1))) % data.num_classes
            wrong.add((entry.name, i))
    start = time.perf_counter()
    check = label_checks.check_labels(stats, ImageChecks(data), None, 0)
    seconds = time.perf_counter() - start
    is_wrong = np.array([(entry.name, i) in wrong for entry, i in check.examples])
    results = {"labels": len(is_wrong), "flipped": len(wrong), "seconds": round(seconds, 1), "told": check.summary}
    own = label_checks.apply_confident_learning(check.labels, check.probabilities)
    for name, suspects in (("own", own), ("cleanlab", check.suspects if "cleanlab" in check.summary else None)):
        if suspects is not None:
            hits, first = is_wrong[suspects].sum(), is_wrong[suspects[: len(wrong)]]
            results[name] = {
                "suspects": len(suspects),
                "precision": round(float(hits / len(suspects)), 3),
                "recall": round(float(hits / len(wrong)), 3),
                "precision_of_the_first": round(float(first.mean()), 3),
                "of_the_first": len(first),
            }
    return results


def main() -> None:
    """Measure duplicates, copies and wrong labels, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {
        "Fashion-MNIST": measure_duplicates("FashionMNIST"),
        "digits (every alarm is a false one)": measure_duplicates("sample-digits"),
        "changed copies found": measure_copies("FashionMNIST"),
        "flipped labels, Fashion-MNIST": measure_wrong_labels("FashionMNIST"),
        "flipped labels, sample": measure_wrong_labels("sample"),
    }
    publish(args, results)


if __name__ == "__main__":
    main()
