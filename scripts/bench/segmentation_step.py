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
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from sft_lightning.study.statistics import confidence_interval

EPOCHS = 3  # the first is not counted
Loss = Callable[[nn.ModuleList, Any, list[int]], Tensor]


class Starts(EpochStarts):
    """Record the start of each epoch, and copy the networks before the first step."""


def time_framework(argv: list[str], steps: int) -> tuple[float, SFTCLI]:
    """Train through the command line and return the median seconds per step after the first epoch, and the CLI.

    Args:
        argv: Words of `fit`, in which the callback `Starts` is one.
        steps: Number of steps of an epoch.
    """
    with discard_terminal_output():
        cli = run(argv)
    times = find_callback(cli, "Starts").times
    return statistics.median(b - a for a, b in pairwise(times[1:])) / steps, cli


def time_plain_loop(cli: SFTCLI, args: argparse.Namespace, compute_loss: Loss) -> float:
    """Return the median seconds per step of a plain loop after its first epoch.

    Args:
        cli: CLI of a training of the framework, whose files, initial weights and optimizer the loop uses.
        args: Arguments of the script.
        compute_loss: Function from the networks, the storage and the positions of a batch to its loss.
    """
    split = cli.datamodule.splits["labeled"]
    networks = nn.ModuleList(deepcopy(find_callback(cli, "Starts").networks)).train()
    optimizer = cli.model._optimizer(networks.parameters())
    epochs = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        passes = -(-args.steps * args.batch // len(split))
        order = torch.cat([torch.randperm(len(split)) for _ in range(passes)]).tolist()
        for step in range(args.steps):
            chosen = [split.indices[k] for k in order[args.batch * step : args.batch * (step + 1)]]
            optimizer.zero_grad()
            compute_loss(networks, split.part.storage, chosen).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        epochs.append(time.perf_counter() - start)
    return float(statistics.median(epochs[1:]) / args.steps)


def read_images(images: Any, positions: list[int]) -> Tensor:
    """Read images, float32 (B, 3, H, W) in [0, 1]."""
    pixels = []
    for i in positions:
        with Image.open(images.paths[i]) as file:
            pixels.append(torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1))
    return torch.stack(pixels).float().div_(255)


def compute_loss(networks: nn.ModuleList, images: Any, positions: list[int]) -> Tensor:
    """Return the cross-entropy of the pixels of a batch, half of which is mirrored."""
    masks = []
    for i in positions:
        with Image.open(images.masks[i]) as drawn:
            masks.append(torch.from_numpy(np.asarray(drawn).astype(np.int64)))
    x, y = read_images(images, positions), torch.stack(masks)
    mirrored = torch.rand(len(x)) < 0.5
    x[mirrored], y[mirrored] = x[mirrored].flip(3), y[mirrored].flip(2)
    backbone, head = networks
    return F.cross_entropy(head(backbone(x)), y, ignore_index=255)


def parse(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse the arguments of the script, with defaults of its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="steps per epoch")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--out", type=Path)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    return args


def list_words(source: Path, args: argparse.Namespace) -> list[str]:
    """Return what all trainings of the framework have in common."""
    argv = [f"--model.backbone={args.backbone}", "--model.optimizer=AdamW", "--model.optimizer.lr=0.001"]
    argv += [f"--data.source={source}", f"--data.image_size={args.size}", f"--data.batch_size={args.batch}"]
    argv += ["--data.val_size=0", "--data.num_workers=0", "--data.weak_view.flip=true", "--run_name=bench"]
    argv += [f"--data.steps_per_epoch={args.steps}", f"--trainer.max_epochs={EPOCHS + 1}", "--trainer.accelerator=cpu"]
    return [*argv, "--trainer.limit_val_batches=0"]


def compare(args: argparse.Namespace, argv: list[str], compute_loss: Loss) -> None:
    """Time the pairs and print JSON.

    Args:
        args: Arguments of the script.
        argv: Words of `fit`.
        compute_loss: Function from the networks, the storage and the positions of a batch to its loss.
    """
    _, cli = time_framework(argv, args.steps)  # warm up: the first training of a process is slower
    pairs = []
    for k in range(args.pairs):
        plain = time_plain_loop(cli, args, compute_loss) if k % 2 else None
        ours, cli = time_framework(argv, args.steps)
        pairs.append((ours, time_plain_loop(cli, args, compute_loss) if plain is None else plain))
    mean, low, high = confidence_interval([ours / plain for ours, plain in pairs])
    publish(args, {
        "milliseconds_per_step": {
            "framework": [round(ours * 1e3, 2) for ours, _ in pairs],
            "plain": [round(plain * 1e3, 2) for _, plain in pairs],
        },
        "mean_ratio": round(mean, 4),
        "ratio_95": None if low is None or high is None else [round(low, 4), round(high, 4)],
    })  # fmt: skip


def main() -> None:
    """Compare on composed scenes."""
    args = parse(__doc__)
    source = write(Path("scenes"), args.count, args.size, args.count // 10)
    argv = ["fit", "--model=FineTuneClassifier", "--data=SegmentationDataModule", *list_words(source, args)]
    compare(args, [*argv, "--trainer.callbacks=segmentation_step.Starts"], compute_loss)


if __name__ == "__main__":
    main()
