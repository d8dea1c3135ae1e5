"""What the checkpoints on the way cost: the same training with and without them, in pairs.

    python scripts/bench/checkpoint_cost.py --out scripts/bench/results/checkpoint_cost.json

Both trainings of a pair are the same `fit` through the command line; one saves no last iterate before its end. The time
is that of the training from its first batch to its last validation, without the save at the end, which both have. Each
network has the ratios of its pairs with their mean and its 95 % interval, and what the clock around the saves says: the
share of the training that they took. `conv` is the quickstart's semi-supervised config, with a checkpoint of 2 MB;
`resnet18` at 64x64 has one of 134 MB: network, momentum and average. The first save comes at step 50, whatever it
costs, and later ones when 2 % of the time since is as long as a save.
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

from about import publish
from commands import fit, timed_saves
from lightning.pytorch import Callback, LightningModule, Trainer

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
    """Seconds of a training; callbacks that save come after it."""

    started: float
    seconds: float

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts it."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self.seconds = time.perf_counter() - self.started


def trained(network: str, steps: int, saves: bool, seed: int) -> dict[str, float]:
    """One training: its seconds, and number, seconds and size of what it saved on the way."""
    words = [f"--data.init_args.steps_per_epoch={steps}", "--trainer.max_epochs=1"]
    words += ["--trainer.callbacks=checkpoint_cost.Clock"]
    spent: list[float] = []
    own = RunCheckpoint._save_if_due
    if not saves:
        RunCheckpoint._save_if_due = lambda *_: None  # type: ignore[method-assign]
    try:
        with timed_saves(spent) if saves else nullcontext():
            folder, cli = fit(CONFIGS, "bench", seed, *NETWORKS[network], *words)
    finally:
        RunCheckpoint._save_if_due = own  # type: ignore[method-assign]
    (clock,) = (c for c in cli.trainer.callbacks if type(c).__name__ == "Clock")  # type: ignore[attr-defined]
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size
    shutil.rmtree(folder)
    return {"seconds": clock.seconds, "saves": len(spent), "save_seconds": sum(spent), "bytes": size}


def measured(network: str, steps: int, pairs: int) -> dict[str, Any]:
    """All pairs of a network, after a short training of each kind that does not count."""
    for saves in (False, True):
        trained(network, min(steps, 60), saves, 0)
    rows = []
    for k in range(pairs):
        order = (False, True) if k % 2 == 0 else (True, False)
        one = {saves: trained(network, steps, saves, k) for saves in order}
        rows.append((one[False], one[True]))
    ratios = [with_saves["seconds"] / without["seconds"] for without, with_saves in rows]
    shares = [with_saves["save_seconds"] / with_saves["seconds"] for _, with_saves in rows]
    mean, low, high = confidence_interval(ratios)
    each = [with_saves["save_seconds"] / with_saves["saves"] for _, with_saves in rows if with_saves["saves"]]
    return {
        "steps": steps,
        "checkpoint_bytes": int(rows[0][1]["bytes"]),
        "saves": [int(with_saves["saves"]) for _, with_saves in rows],
        "seconds_of_a_save": round(statistics.median(each), 4) if each else None,
        "seconds_without": [round(without["seconds"], 2) for without, _ in rows],
        "seconds_with": [round(with_saves["seconds"], 2) for _, with_saves in rows],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(mean, 4),
        "ratio_95": None if low is None or high is None else [round(low, 4), round(high, 4)],
        "share_by_the_clock": [round(share, 4) for share in shares],
    }


def main() -> None:
    """Times the pairs and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250, help="of each training; saves on the way begin at 50")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    publish(args, {network: measured(network, args.steps, args.pairs) for network in args.networks})


if __name__ == "__main__":
    main()
