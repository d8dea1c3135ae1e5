"""Seconds per epoch of the reference, shipped defaults against two plain loops, in turn in one process.

    python scripts/bench/training_speed.py --pairs 5 --out scripts/bench/results/training_speed.json

The framework runs through the command line with logging, progress bar and checkpoints; its epoch is timed from start to
start, so that all of it counts. Prints JSON with the medians and, pair by pair, the ratios.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from reference_loop import PerSample, decoder, encoder, sliced, train
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sft_lightning
from sft_lightning.callbacks.progress import Progress
from sft_lightning.cli import run
from sft_lightning.data.torchvision_sources import DEBIAN_FASHION_MNIST, read_idx

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "reference"
STARTS: list[float] = []


class Terminal(io.StringIO):
    """Takes the bar as a terminal would, without showing it."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def framework(config: str, epochs: int = 4) -> float:
    """Median seconds of an epoch after the first, from start to start."""
    STARTS.clear()
    old = Progress.on_train_epoch_start

    def timed(self: Progress, trainer: Any, *args: Any) -> None:
        STARTS.append(time.perf_counter())
        old(self, trainer, *args)

    Progress.on_train_epoch_start = timed  # type: ignore[method-assign,assignment]
    terminal, sys.stdout = sys.stdout, Terminal()
    try:
        run(["fit", "--config", str(CONFIGS / config), "--trainer.max_epochs", str(epochs)])
    finally:
        sys.stdout = terminal
        Progress.on_train_epoch_start = old  # type: ignore[method-assign]
    return statistics.median(b - a for a, b in pairwise(STARTS[1:]))


def plain(phase: str, loop: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of one epoch of a plain loop."""
    loader = DataLoader(PerSample(images, labels), batch_size=64, shuffle=True)
    batches = sliced(images, labels) if loop == "sliced" else lambda: loader
    enc = encoder()
    if phase == "autoencoder":
        model: nn.Module = nn.Sequential(enc, decoder())
        return train(1, batches, model, lambda x, _: F.mse_loss(model(x), x.flatten(1)), loop == "sliced")[0]
    model = nn.Sequential(enc, nn.Linear(32, 10))
    return train(1, batches, model, lambda x, y: F.cross_entropy(model(x), y), loop == "sliced")[0]


def main() -> None:
    """Times the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.resolve() if args.out else None
    os.chdir(tempfile.mkdtemp())
    images = read_idx(DEBIAN_FASHION_MNIST / "train-images-idx3-ubyte.gz")
    labels = read_idx(DEBIAN_FASHION_MNIST / "train-labels-idx1-ubyte.gz").long()
    result: dict[str, Any] = {}
    for phase, config in (
        ("autoencoder", "autoencoder_fashion_mnist.yaml"),
        ("fine_tune", "finetune_fashion_mnist.yaml"),
    ):
        rows = []
        for _ in range(args.pairs):
            row = {loop: plain(phase, loop, images, labels) for loop in ("sliced", "per_sample")}
            row["framework"] = framework(config)
            rows.append(row)
        result[phase] = {
            "seconds_per_epoch": {k: round(statistics.median(r[k] for r in rows), 3) for k in rows[0]},
            "times_faster_than_per_sample": [round(r["per_sample"] / r["framework"], 2) for r in rows],
            "times_the_sliced_loop": [round(r["framework"] / r["sliced"], 2) for r in rows],
            "median_times_faster_than_per_sample": round(
                statistics.median(r["per_sample"] / r["framework"] for r in rows), 2
            ),
            "median_times_the_sliced_loop": round(statistics.median(r["framework"] / r["sliced"] for r in rows), 2),
        }
    about = {
        "date": str(date.today()), "cores": os.cpu_count(), "machine": platform.machine(),
        "torch": torch.__version__, "sft_lightning": sft_lightning.__version__, "pairs": args.pairs,
    }  # fmt: skip
    text = json.dumps({**about, **result}, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
