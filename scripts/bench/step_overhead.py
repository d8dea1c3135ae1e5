"""What the framework adds to a step: shipped defaults against a plain PyTorch loop, in pairs.

    python scripts/bench/step_overhead.py --out scripts/bench/results/step_overhead.json

The framework runs `configs/quickstart/fine_tune.yaml` (100 labels of the sample, batches of 64, fused Adam, without the
schedule) through the command line with logging, the bar of a terminal and checkpoints, and is timed from the start of
an epoch to that of the next, so that all of it counts. The plain loop has copies of its backbone and head, the same
optimizer and the same uint8 images, which it indexes, scales and normalizes.

Both run in the same process, in alternating order: they share what commands set up for a process (denormal numbers are
zero, memory is kept), so that the difference is what the framework does in a step, and none of what tells two processes
apart. Against loops in processes of their own see `training_speed.py`. Prints JSON: for each pair the microseconds that
a step takes longer, their mean with its 95 % interval, and that as a share of a step of 10 ms.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from about import publish
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from training_speed import Terminal

from sft_lightning import FineTuneClassifier
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.study.statistics import confidence_interval

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "fine_tune.yaml"
STEP = 0.01  # seconds of the step that the share is of
EPOCHS = 4  # the first is not counted


class Starts(Callback):
    """When each epoch began; backbone and head as they were before the first step."""

    times: list[float]
    networks: tuple[nn.Module, nn.Module]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the networks."""
        assert isinstance(pl_module, FineTuneClassifier)
        self.times, self.networks = [], deepcopy((pl_module.backbone, pl_module.head))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the clock."""
        self.times.append(time.perf_counter())


def framework(backbone: str, steps: int) -> tuple[float, SFTCLI]:
    """Seconds of a step, median of the epochs after the first, and what took part."""
    words = ["fit", f"--config={CONFIG}", "--run_name=bench", f"--model.init_args.backbone={backbone}"]
    words += ["--model.init_args.lr_scheduler=null", f"--data.init_args.steps_per_epoch={steps}"]
    words += ["--trainer.limit_val_batches=0", f"--trainer.max_epochs={EPOCHS + 1}", "--trainer.accelerator=cpu"]
    words += ["--trainer.callbacks=step_overhead.Starts"]
    terminal, sys.stdout = sys.stdout, Terminal()
    try:
        done = run(words)
    finally:
        sys.stdout = terminal
    return statistics.median(b - a for a, b in pairwise(_starts(done).times[1:])) / steps, done


def _starts(done: SFTCLI) -> Any:
    return next(c for c in done.trainer.callbacks if type(c).__name__ == "Starts")  # type: ignore[attr-defined]


def plain(done: SFTCLI, steps: int) -> float:
    """The same of a plain loop.

    Args:
        done: A training of the framework, whose images, first weights and optimizer it takes.
        steps: Of an epoch.
    """
    split, size = done.datamodule.splits["labeled"], done.datamodule.batch_size
    pictures, labels = split.part.images.data[split.indices], split.labels
    network = nn.Sequential(*deepcopy(_starts(done).networks)).train()  # the backbone normalizes
    optimizer = done.model._optimizer(network.parameters())
    epochs = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        order = torch.cat([torch.randperm(len(labels)) for _ in range(-(-steps * size // len(labels)))])
        for step in range(steps):
            mine = order[size * step : size * (step + 1)]
            optimizer.zero_grad()
            loss = F.cross_entropy(network(pictures[mine].float().div_(255)), labels[mine])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        epochs.append(time.perf_counter() - start)
    return statistics.median(epochs[1:]) / steps


def main() -> None:
    """Times the pairs and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=500, help="of an epoch")
    parser.add_argument("--backbone", default="mlp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    _, done = framework(args.backbone, args.steps)  # the first training of a process is slower
    pairs = []
    for k in range(args.pairs):
        bare = plain(done, args.steps) if k % 2 else None
        ours, done = framework(args.backbone, args.steps)
        pairs.append((ours, plain(done, args.steps) if bare is None else bare))
    overhead = [round((ours - bare) * 1e6, 1) for ours, bare in pairs]
    mean, low, high = confidence_interval(overhead)
    publish(args, {
        "microseconds_per_step": {
            "framework": [round(ours * 1e6, 1) for ours, _ in pairs],
            "plain": [round(bare * 1e6, 1) for _, bare in pairs],
        },
        "overhead": overhead,
        "mean_overhead": round(mean, 1),
        "overhead_95": None if low is None or high is None else [round(low, 1), round(high, 1)],
        "share_of_10_ms": round(mean / 1e6 / STEP, 4),
    })  # fmt: skip


if __name__ == "__main__":
    main()
