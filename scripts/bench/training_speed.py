"""Seconds per epoch of the reference, shipped defaults against two plain loops, in turn.

    python scripts/bench/training_speed.py --pairs 5 --out scripts/bench/results/training_speed.json

The framework runs through the command line with logging, progress bar and checkpoints; its epoch is timed from start to
start, so that all of it counts. The plain loops (`reference_loop.py`) have processes of their own, where no setting of
the framework reaches them. All three give the median of the epochs after the first, which is faster than those that
follow. The framework trains a second time with Lightning's own epoch loop (`--fast_loop false`). Prints JSON with the
medians and, pair by pair, the ratios.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from about import about

from sft_lightning.cli.lightning_cli import run
from sft_lightning.training.callbacks.progress import Progress

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "reference"
CONFIG = {"autoencoder": "autoencoder_fashion_mnist.yaml", "fine_tune": "finetune_fashion_mnist.yaml"}
BATCH = 64  # of both configs
STARTS: list[float] = []


class Terminal(io.StringIO):
    """Takes the bar as a terminal would, without showing it."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def framework(config: str, epochs: int, pictures: int, *words: str) -> float:
    """Median seconds of an epoch after the first, from start to start; `words` are further ones for `fit`."""
    STARTS.clear()
    old = Progress.on_train_epoch_start

    def timed(self: Progress, trainer: Any, *args: Any) -> None:
        STARTS.append(time.perf_counter())
        old(self, trainer, *args)

    Progress.on_train_epoch_start = timed  # type: ignore[method-assign,assignment]
    terminal, sys.stdout = sys.stdout, Terminal()
    try:
        limit = f"--trainer.limit_train_batches={pictures // BATCH}"  # an int: batches, all of them where it is more
        run(["fit", "--config", str(CONFIGS / config), f"--trainer.max_epochs={epochs}", limit, *words])
    finally:
        sys.stdout = terminal
        Progress.on_train_epoch_start = old  # type: ignore[method-assign]
    return statistics.median(b - a for a, b in pairwise(STARTS[1:]))


def plain(loop: str, epochs: int, pictures: int) -> dict[str, float]:
    """Median seconds of an epoch of a plain loop after the first, of both phases."""
    script = Path(__file__).with_name("reference_loop.py")
    command = [sys.executable, str(script), "--loop", loop, f"--epochs={epochs}", f"--pictures={pictures}"]
    command += ["--seeds", "0"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)["runs"][0]
    return {phase: told[f"{phase}_seconds_per_epoch"] for phase in CONFIG}


def main() -> None:
    """Times the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="3 or more; the first and the last do not count")
    parser.add_argument("--pictures", type=int, default=60_000, help="of an epoch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.resolve() if args.out else None
    os.chdir(tempfile.mkdtemp())
    rows: dict[str, list[dict[str, float]]] = {phase: [] for phase in CONFIG}
    for _ in range(args.pairs):
        loops = {loop: plain(loop, args.epochs, args.pictures) for loop in ("sliced", "per_sample")}
        for phase, config in CONFIG.items():
            row = {loop: seconds[phase] for loop, seconds in loops.items()}
            row["framework"] = framework(config, args.epochs, args.pictures)
            row["lightnings_loop"] = framework(config, args.epochs, args.pictures, "--fast_loop=false")
            rows[phase].append(row)
    result: dict[str, Any] = {}
    for phase, measured in rows.items():
        faster = [r["per_sample"] / r["framework"] for r in measured]
        slower = [r["framework"] / r["sliced"] for r in measured]
        share = [r["framework"] / r["lightnings_loop"] for r in measured]
        result[phase] = {
            "seconds_per_epoch": {k: round(statistics.median(r[k] for r in measured), 3) for k in measured[0]},
            "times_faster_than_per_sample": [round(ratio, 2) for ratio in faster],
            "times_the_sliced_loop": [round(ratio, 2) for ratio in slower],
            "share_of_lightnings_loop": [round(ratio, 2) for ratio in share],
            "median_times_faster_than_per_sample": round(statistics.median(faster), 2),
            "median_times_the_sliced_loop": round(statistics.median(slower), 2),
            "median_share_of_lightnings_loop": round(statistics.median(share), 2),
        }
    text = json.dumps({**about(), "pairs": args.pairs, **result}, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
