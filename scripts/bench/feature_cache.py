"""A linear probe over a frozen ResNet-18 at 224: seconds of an epoch with features from the cache, and recomputed.

    python scripts/bench/feature_cache.py --out scripts/bench/results/feature_cache.json

Both are the same `fit` through the command line, one with `cache_features: false`. Epochs after the first count; what
the one pass that fills the cache takes stands beside them.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from about import publish
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.cli.lightning_cli import run

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "fine_tune.yaml"


class Clock(Callback):
    """The time of each epoch's training batches."""

    epochs: list[float]
    started: float

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.epochs = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self.epochs.append(time.perf_counter() - self.started)


def measure(cached: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the epochs after the first, seconds of the whole `fit`, and its last training loss."""
    words = ["fit", f"--config={CONFIG}", "--run_name=bench", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.callbacks=feature_cache.Clock", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    words += [f"--model.init_args.backbone={args.backbone}", "--model.init_args.tune=head"]
    words += [f"--model.init_args.cache_features={str(cached).lower()}", "--data.init_args.channels=3"]
    words += [f"--data.init_args.image_size={args.image_size}", f"--data.init_args.num_labels={args.labels}"]
    words += ["--data.init_args.steps_per_epoch=null", f"--trainer.max_epochs={args.epochs}"]
    words += ["--data.init_args.eval_batch_size=64", "--data.init_args.batch_size=64"]
    start = time.perf_counter()
    done = run(words)
    whole = time.perf_counter() - start
    (clock,) = (c for c in done.trainer.callbacks if type(c).__name__ == "Clock")  # type: ignore[attr-defined]
    loss = float(done.trainer.callback_metrics["train/loss"])
    later = clock.epochs[1:]
    return {"epoch": statistics.median(later), "epochs": later, "whole": whole, "train_loss": loss}


def main() -> None:
    """Measures both and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch; all cores unless given")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    recomputed, cached = measure(False, args), measure(True, args)
    pairs = zip(recomputed["epochs"], cached["epochs"], strict=True)
    found = {
        "recomputed": recomputed,
        "cached": cached,
        "times_faster": [round(slow / fast, 1) for slow, fast in pairs],
    }
    publish(args, {**found, "times_faster_per_epoch": round(recomputed["epoch"] / cached["epoch"], 1)})


if __name__ == "__main__":
    main()
