"""Do three rounds of chosen labels beat three rounds of random ones? Real calls of `solve`, real label files.

    python scripts/bench/label_rounds.py --out scripts/bench/results/label_rounds.json
    python scripts/bench/label_rounds.py --source FashionMNIST --out FILE

The images of a source are written as files, with a table that labels 40 of them, as many of each class. Each round, an
oracle labels 20 more: the examples of `label_next.csv`, or random ones. `solve` is called again with the grown label
file, for one minute, so that it compares classifiers of pixels alone. The figure is the accuracy of its model on the
test images, which are those of the source.

Hypothesis, written down before the first run: chosen labels are better after each of the three rounds, on average over
3 seeds. How the examples are chosen was decided on digits (`next_labels.py`).
Budget: 15 minutes of one core for a source.
"""

import argparse
import csv
import os
import random
import statistics
import tempfile
from pathlib import Path

import torch
from provenance import publish
from torchvision.io import write_png

from sft_lightning import ImageDataModule, solve

Images = dict[str, tuple[str, str]]  # class and split by path


def write_images(source: str, root: str, folder: Path) -> Images:
    """Write all images of a source as files.

    Args:
        source: Name of the source.
        root: Folder of torchvision data sets.
        folder: Folder to write to.
    """
    data = ImageDataModule(source, root=root, val_size=0, eval_batch_size=500)
    data.setup("fit")
    images: Images = {}
    (folder / "images").mkdir(exist_ok=True)
    for split in ("labeled", "test"):
        for batch in data.batches_of(split, torch.device("cpu")):
            for x, y in zip(batch.x, batch.y.tolist(), strict=True):
                path = f"images/{len(images):05}.png"
                write_png((x * 255).round().to(torch.uint8), str(folder / path))
                images[path] = (data.class_names[y], "train" if split == "labeled" else "test")
    return images


def write_table(images: Images, labeled: set[str], path: Path) -> None:
    """Write a table in which some training images, and all test images, have their label.

    Args:
        images: Class and split by path.
        labeled: Paths of the labeled training images.
        path: Path of the table.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name, (label, split) in images.items():
            writer.writerow([name, label if split == "test" or name in labeled else "", split])


def run_rounds(images: Images, is_chosen: bool, seed: int, rounds: int, step: int) -> list[float]:
    """Return the test accuracy before the first round and after each.

    Args:
        images: Class and split by path.
        is_chosen: Whether `solve` chooses the examples, otherwise chance.
        seed: Seed of the first labels and of the random ones.
        rounds: Number of rounds.
        step: Number of labels of a round.
    """
    rng = random.Random(seed)
    pool = [name for name, (_, split) in images.items() if split == "train"]
    rng.shuffle(pool)
    classes = sorted({label for label, _ in images.values()})
    known = {name for c in classes for name in [n for n in pool if images[n][0] == c][: 40 // len(classes)]}
    name = f"{'chosen' if is_chosen else 'random'}_{seed}"
    table, labels = Path(f"{name}.csv"), Path(f"{name}_labels.csv")
    write_table(images, known, table)
    added: list[str] = []
    accuracies = []
    for turn in range(rounds + 1):
        given = str(labels) if added else None
        result = solve(str(table), minutes=1, name=name, seed=seed, candidates=["none"], labels=given)
        accuracies.append(round(result.summary["test_accuracy"], 4))
        print(name, turn, result.summary["recipe"], accuracies, flush=True)
        left = [n for n in pool if n not in known and n not in added]
        if is_chosen:
            with (result.folder / "label_next.csv").open(newline="") as file:
                left = [row["id"] for row in csv.DictReader(file)]
        added += left[:step]
        with labels.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "label"], *([n, images[n][0]] for n in added)])
    return accuracies


def main() -> None:
    """Run all rounds of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="sample")
    parser.add_argument("--root", default="data", help="folder of the source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", type=int, default=20, help="labels of a round")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out, root = args.out and args.out.resolve(), str(Path(args.root).resolve())
    os.chdir(tempfile.mkdtemp())
    images = write_images(args.source, root, Path())
    accuracies = {
        arm: [run_rounds(images, arm == "chosen", seed, args.rounds, args.step) for seed in args.seeds]
        for arm in ("chosen", "random")
    }
    mean = {
        arm: [round(statistics.mean(turn), 4) for turn in zip(*rows, strict=True)] for arm, rows in accuracies.items()
    }
    args.source, args.root = Path(args.source).name, Path(args.root).name
    publish(args, {"labels": [40 + args.step * r for r in range(args.rounds + 1)], "mean": mean, "by_seed": accuracies})


if __name__ == "__main__":
    main()
