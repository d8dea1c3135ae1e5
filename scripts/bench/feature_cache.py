"""Time the epochs of a linear probe on a frozen ResNet-18 at 224, with cached and with recomputed features.

    python scripts/bench/feature_cache.py --out scripts/bench/results/feature_cache.json

Both are the same `fit` through the command line, one with `cache_features: false`. The first epoch is not counted;
`whole` has the seconds of the entire `fit`, including the pass that fills the cache.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from commands import CONFIGS, find_callback
from lightning.pytorch import Callback, LightningModule, Trainer
from provenance import publish

from sft_lightning.cli.lightning_cli import run


class Clock(Callback):
    """Time the training batches of each epoch."""

    epochs: list[float]
    started: float

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the times."""
        self.epochs = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.epochs.append(time.perf_counter() - self.started)


def measure(cached: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of the epochs after the first, the seconds of `fit`, and its last training loss."""
    argv = ["fit", f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", "--run_name=bench"]
    argv += ["--trainer.enable_progress_bar=false"]
    argv += ["--trainer.callbacks=feature_cache.Clock", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    argv += [f"--model.init_args.backbone={args.backbone}", "--model.init_args.tune=head"]
    argv += [f"--model.init_args.cache_features={str(cached).lower()}", "--data.init_args.channels=3"]
    argv += [f"--data.init_args.image_size={args.image_size}", f"--data.init_args.num_labels={args.labels}"]
    argv += ["--data.init_args.steps_per_epoch=null", f"--trainer.max_epochs={args.epochs}"]
    argv += ["--data.init_args.eval_batch_size=64", "--data.init_args.batch_size=64"]
    start = time.perf_counter()
    cli = run(argv)
    total = time.perf_counter() - start
    loss = float(cli.trainer.callback_metrics["train/loss"])
    epochs = find_callback(cli, "Clock").epochs[1:]
    return {"epoch": statistics.median(epochs), "epochs": epochs, "whole": total, "train_loss": loss}


def main() -> None:
    """Measure both and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="number of torch's threads; all cores by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    recomputed, cached = measure(False, args), measure(True, args)
    pairs = zip(recomputed["epochs"], cached["epochs"], strict=True)
    publish(args, {
        "recomputed": recomputed,
        "cached": cached,
        "times_faster": [round(slow / fast, 1) for slow, fast in pairs],
        "times_faster_per_epoch": round(recomputed["epoch"] / cached["epoch"], 1),
    })  # fmt: skip


if __name__ == "__main__":
    main()
