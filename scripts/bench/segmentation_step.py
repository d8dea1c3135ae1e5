"""Measure a training step of segmentation against a plain PyTorch loop with the same network, in pairs.

    python scripts/bench/segmentation_step.py --out scripts/bench/results/segmentation_step.json

The framework runs `fit` through the command line with logging, a terminal's progress bar and checkpoints, on composed
scenes (`shapes_scenes.py`). An epoch is timed from its start to the start of the next, so that everything counts:
reading images and masks, mirroring, forward and backward pass, optimizer. The plain loop has copies of backbone,
decoder and head, the same optimizer, and reads the same PNG files with Pillow in the same process. It mirrors images
and masks, and its loss is PyTorch's cross-entropy with `ignore_index`.

Both run in the same process, in alternating order, without workers. It prints JSON with the milliseconds per step of
each pair, and their ratio with its 95 % interval.
"""

import argparse
import os
import statistics
import tempfile
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from commands import find_callback
from PIL import Image
from provenance import publish
from shapes_scenes import write
from step_overhead import EpochStarts
from terminal import discard_terminal_output
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.study.statistics import confidence_interval

EPOCHS = 3  # the first is not counted


class Starts(EpochStarts):
    """Record the start of each epoch, and copy the networks before the first step."""


def time_framework(source: Path, args: argparse.Namespace) -> tuple[float, SFTCLI]:
    """Train through the command line and return the median seconds per step after the first epoch, and the CLI."""
    argv = ["fit", "--model=FineTuneClassifier", "--data=SegmentationDataModule", "--run_name=bench"]
    argv += [f"--model.backbone={args.backbone}", "--model.optimizer=AdamW", "--model.optimizer.lr=0.001"]
    argv += [f"--data.source={source}", f"--data.image_size={args.size}", f"--data.batch_size={args.batch}"]
    argv += ["--data.val_size=0", "--data.num_workers=0", "--data.weak_view.flip=true"]
    argv += [f"--data.steps_per_epoch={args.steps}", f"--trainer.max_epochs={EPOCHS + 1}", "--trainer.accelerator=cpu"]
    argv += ["--trainer.limit_val_batches=0", "--trainer.callbacks=segmentation_step.Starts"]
    with discard_terminal_output():
        cli = run(argv)
    times = find_callback(cli, "Starts").times
    return statistics.median(b - a for a, b in pairwise(times[1:])) / args.steps, cli


def read_batch(images: MaskedImages, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Read images, float32 (B, 3, H, W) in [0, 1], and masks, int64 (B, H, W), half of them mirrored."""
    pixels, masks = [], []
    for i in positions:
        mask = images.masks[i]
        assert mask is not None
        with Image.open(images.paths[i]) as file, Image.open(mask) as drawn:
            pixels.append(torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1))
            masks.append(torch.from_numpy(np.asarray(drawn).astype(np.int64)))
    x, y = torch.stack(pixels).float().div_(255), torch.stack(masks)
    mirrored = torch.rand(len(x)) < 0.5
    x[mirrored], y[mirrored] = x[mirrored].flip(3), y[mirrored].flip(2)
    return x, y


def time_plain_loop(cli: SFTCLI, args: argparse.Namespace) -> float:
    """Return the median seconds per step of a plain loop after its first epoch.

    Args:
        cli: CLI of a training of the framework, whose files, initial weights and optimizer the loop uses.
        args: Arguments of the script.
    """
    split = cli.datamodule.splits["labeled"]
    images = split.part.storage
    assert isinstance(images, MaskedImages)
    network = nn.Sequential(*deepcopy(find_callback(cli, "Starts").networks)).train()
    optimizer = cli.model._optimizer(network.parameters())
    epochs = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        passes = -(-args.steps * args.batch // len(split))
        order = torch.cat([torch.randperm(len(split)) for _ in range(passes)]).tolist()
        for step in range(args.steps):
            chosen = [split.indices[k] for k in order[args.batch * step : args.batch * (step + 1)]]
            x, y = read_batch(images, chosen)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y, ignore_index=255)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        epochs.append(time.perf_counter() - start)
    return float(statistics.median(epochs[1:]) / args.steps)


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="steps per epoch")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    source = write(Path("scenes"), args.count, args.size, args.count // 10)
    _, cli = time_framework(source, args)  # warm up: the first training of a process is slower
    pairs = []
    for k in range(args.pairs):
        plain = time_plain_loop(cli, args) if k % 2 else None
        ours, cli = time_framework(source, args)
        pairs.append((ours, time_plain_loop(cli, args) if plain is None else plain))
    mean, low, high = confidence_interval([ours / plain for ours, plain in pairs])
    publish(args, {
        "milliseconds_per_step": {
            "framework": [round(ours * 1e3, 2) for ours, _ in pairs],
            "plain": [round(plain * 1e3, 2) for _, plain in pairs],
        },
        "mean_ratio": round(mean, 4),
        "ratio_95": None if low is None or high is None else [round(low, 4), round(high, 4)],
    })  # fmt: skip


if __name__ == "__main__":
    main()
