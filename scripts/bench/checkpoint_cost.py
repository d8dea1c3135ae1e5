"""Measure the cost of checkpoints during training: pairs of the same training with and without them.

    python scripts/bench/checkpoint_cost.py --out scripts/bench/results/checkpoint_cost.json

Both trainings of a pair are the same `fit` through the command line, but one saves the last iterate only at its end.
Times run from the first batch to the last validation, without the save at the end, which both have. For each network,
the result has the ratios of the pairs with their mean and its 95 % interval, and the share of the training time that
the saves took by a clock around them. `conv` is the quickstart's semi-supervised config, with a checkpoint of 2 MB;
the checkpoint of `resnet18` at 64x64 has 134 MB: network, momentum and average. The first save comes at step 50,
whatever it costs, and later ones when 2 % of the time since is as long as a save.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from commands import find_callback, fit, time_saves
from lightning.pytorch import Callback, LightningModule, Trainer
from provenance import publish

from sft_lightning.study.statistics import confidence_interval
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint

CONFIGS = ["semi_supervised/shared.yaml", "semi_supervised/freematch.yaml"]
NETWORKS = {
    "conv": ["--data.init_args.batch_size=32", "--data.init_args.unlabeled_ratio=3"],
    "resnet18": [
        "--model.init_args.backbone=torchvision/resnet18", "--data.init_args.image_size=64",
        "--data.init_args.batch_size=8", "--data.init_args.unlabeled_ratio=1",
    ],
}  # fmt: skip


class Clock(Callback):
    """Time a training. Lightning calls checkpoint callbacks last, so the final save is not included."""

    started: float
    seconds: float

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def train(network: str, steps: int, saves: bool, seed: int) -> dict[str, float]:
    """Train once and return the seconds of the training, and number, seconds and bytes of its saves."""
    argv = [f"--data.init_args.steps_per_epoch={steps}", "--trainer.max_epochs=1", "--model.init_args.control=false"]
    argv += ["--trainer.callbacks=checkpoint_cost.Clock"]
    save_seconds: list[float] = []
    original = RunCheckpoint._save_if_due
    if not saves:
        RunCheckpoint._save_if_due = lambda *_: None  # type: ignore[method-assign]
    try:
        with time_saves(save_seconds) if saves else nullcontext():
            folder, cli = fit(CONFIGS, "bench", seed, *NETWORKS[network], *argv)
    finally:
        RunCheckpoint._save_if_due = original  # type: ignore[method-assign]
    seconds = find_callback(cli, "Clock").seconds
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size
    shutil.rmtree(folder)
    return {"seconds": seconds, "saves": len(save_seconds), "save_seconds": sum(save_seconds), "bytes": size}


def measure(network: str, steps: int, pairs: int) -> dict[str, Any]:
    """Measure all pairs of a network, after a short training of each kind to warm up."""
    for saves in (False, True):
        train(network, min(steps, 60), saves, 0)
    rows = []
    for k in range(pairs):
        order = (False, True) if k % 2 == 0 else (True, False)
        pair = {saves: train(network, steps, saves, k) for saves in order}
        rows.append((pair[False], pair[True]))
    ratios = [with_saves["seconds"] / without["seconds"] for without, with_saves in rows]
    shares = [with_saves["save_seconds"] / with_saves["seconds"] for _, with_saves in rows]
    mean, low, high = confidence_interval(ratios)
    save_means = [with_saves["save_seconds"] / with_saves["saves"] for _, with_saves in rows if with_saves["saves"]]
    return {
        "steps": steps,
        "checkpoint_bytes": int(rows[0][1]["bytes"]),
        "saves": [int(with_saves["saves"]) for _, with_saves in rows],
        "seconds_of_a_save": round(statistics.median(save_means), 4) if save_means else None,
        "seconds_without": [round(without["seconds"], 2) for without, _ in rows],
        "seconds_with": [round(with_saves["seconds"], 2) for _, with_saves in rows],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(mean, 4),
        "ratio_95": None if low is None or high is None else [round(low, 4), round(high, 4)],
        "share_by_the_clock": [round(share, 4) for share in shares],
    }


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250, help="steps of each training; saves begin at step 50")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    publish(args, {network: measure(network, args.steps, args.pairs) for network in args.networks})


if __name__ == "__main__":
    main()
