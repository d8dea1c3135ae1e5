"""Measure the overhead of the framework per training step, against a plain PyTorch loop, in pairs.

    python scripts/bench/step_overhead.py --out scripts/bench/results/step_overhead.json

The framework runs `configs/quickstart/fine_tune.yaml` (100 labels of the sample, batches of 64, fused Adam, without the
schedule) through the command line with logging, a terminal's progress bar and checkpoints. An epoch is timed from its
start to the start of the next, so that everything counts. The plain loop has copies of the backbone and head, the same
optimizer and the same uint8 images, which it indexes, scales and normalizes.

Both run in the same process, in alternating order. They share the settings that commands make for a process (denormal
numbers are flushed to zero, freed memory is retained), so that the difference is only the work of the framework in a
step. `training_speed.py` compares with loops in processes of their own. It prints JSON: the additional microseconds per
step of each pair, their mean with its 95 % interval, and the mean as a share of a step of 10 ms.
"""

import argparse
import os
import statistics
import tempfile
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from commands import CONFIGS, find_callback
from lightning.pytorch import Callback, LightningModule, Trainer
from provenance import publish
from terminal import discard_terminal_output
from torch import nn
from torch.nn import functional as F

from sft_lightning import FineTuneClassifier, FineTuneDetector
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.study.statistics import confidence_interval

REFERENCE_STEP = 0.01  # seconds of the step in `share_of_10_ms`
EPOCHS = 4  # the first is not counted


class EpochStarts(Callback):
    """Record the start of each epoch, and copy backbone and head before the first step."""

    times: list[float]
    networks: tuple[nn.Module, nn.Module]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the networks."""
        assert isinstance(pl_module, FineTuneClassifier | FineTuneDetector)
        self.times, self.networks = [], deepcopy((pl_module.backbone, pl_module.head))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())


def time_framework(backbone: str, steps: int) -> tuple[float, SFTCLI]:
    """Train through the command line and return the median seconds per step after the first epoch, and the CLI."""
    argv = ["fit", f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", "--run_name=bench"]
    argv += [f"--model.init_args.backbone={backbone}", "--model.init_args.lr_scheduler=null"]
    argv += [f"--data.init_args.steps_per_epoch={steps}", "--trainer.limit_val_batches=0"]
    argv += [f"--trainer.max_epochs={EPOCHS + 1}", "--trainer.accelerator=cpu"]
    argv += ["--trainer.callbacks=step_overhead.EpochStarts"]
    with discard_terminal_output():
        cli = run(argv)
    times = find_callback(cli, "EpochStarts").times
    return statistics.median(b - a for a, b in pairwise(times[1:])) / steps, cli


def time_plain_loop(cli: SFTCLI, steps: int) -> float:
    """Return the median seconds per step of a plain loop after its first epoch.

    Args:
        cli: CLI of a training of the framework, whose images, initial weights and optimizer the loop uses.
        steps: Number of steps per epoch.
    """
    split, size = cli.datamodule.splits["labeled"], cli.datamodule.batch_size
    images, labels = split.part.storage.data[split.indices], split.labels
    network = nn.Sequential(*deepcopy(find_callback(cli, "EpochStarts").networks)).train()  # the backbone normalizes
    optimizer = cli.model._optimizer(network.parameters())
    epochs = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        order = torch.cat([torch.randperm(len(labels)) for _ in range(-(-steps * size // len(labels)))])
        for step in range(steps):
            indices = order[size * step : size * (step + 1)]
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[indices].float().div_(255)), labels[indices])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        epochs.append(time.perf_counter() - start)
    return statistics.median(epochs[1:]) / steps


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=500, help="steps per epoch")
    parser.add_argument("--backbone", default="mlp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    _, cli = time_framework(args.backbone, args.steps)  # warm up: the first training of a process is slower
    pairs = []
    for k in range(args.pairs):
        plain = time_plain_loop(cli, args.steps) if k % 2 else None
        ours, cli = time_framework(args.backbone, args.steps)
        pairs.append((ours, time_plain_loop(cli, args.steps) if plain is None else plain))
    overhead = [round((ours - plain) * 1e6, 1) for ours, plain in pairs]
    mean, low, high = confidence_interval(overhead)
    publish(args, {
        "microseconds_per_step": {
            "framework": [round(ours * 1e6, 1) for ours, _ in pairs],
            "plain": [round(plain * 1e6, 1) for _, plain in pairs],
        },
        "overhead": overhead,
        "mean_overhead": round(mean, 1),
        "overhead_95": None if low is None or high is None else [round(low, 1), round(high, 1)],
        "share_of_10_ms": round(mean / 1e6 / REFERENCE_STEP, 4),
    })  # fmt: skip


if __name__ == "__main__":
    main()
