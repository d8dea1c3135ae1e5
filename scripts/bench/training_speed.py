"""Compare the seconds per epoch of the reference with shipped defaults to those of two plain loops, in turn.

    python scripts/bench/training_speed.py --pairs 5 --out scripts/bench/results/training_speed.json

The framework runs through the command line with logging, progress bar and checkpoints; an epoch is timed from its start
to the start of the next, so that everything counts. The plain loops (`reference_loop.py`) run in separate processes,
which no setting of the framework reaches. All of them report the median of the epochs after the first, which is faster
than the later ones. The framework trains a second time with Lightning's own epoch loop (`--fast_loop false`). It prints
JSON with the medians and the ratios of each pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from provenance import collect_provenance
from terminal import discard_terminal_output

from sft_lightning.cli.lightning_cli import run
from sft_lightning.training.callbacks.progress import Progress

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "reference"
CONFIG = {"autoencoder": "autoencoder_fashion_mnist.yaml", "fine_tune": "finetune_fashion_mnist.yaml"}
BATCH = 64  # batch size of both configs


@contextmanager
def record_epoch_starts(starts: list[float]) -> Iterator[None]:
    """Record the start of each training epoch inside this context, in seconds of the performance counter.

    Args:
        starts: List to which the times are appended.
    """
    original = Progress.on_train_epoch_start

    def record_start(self: Progress, trainer: Any, *args: Any) -> None:
        starts.append(time.perf_counter())
        original(self, trainer, *args)

    Progress.on_train_epoch_start = record_start  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Progress.on_train_epoch_start = original  # type: ignore[method-assign]


def time_framework(config: str, epochs: int, images: int, *extra: str) -> float:
    """Train through the command line and return the median seconds of the epochs after the first.

    Args:
        config: Name of the config.
        epochs: Number of epochs; the last is not counted, either, because no other epoch starts after it.
        images: Number of images per epoch.
        extra: Further options of `fit`.
    """
    starts: list[float] = []
    # An int limits the number of batches, and an epoch that has fewer is complete.
    limit = f"--trainer.limit_train_batches={images // BATCH}"
    with discard_terminal_output(), record_epoch_starts(starts):
        run(["fit", "--config", str(CONFIGS / config), f"--trainer.max_epochs={epochs}", limit, *extra])
    return statistics.median(b - a for a, b in pairwise(starts[1:]))


def time_plain_loop(loop: str, epochs: int, images: int) -> dict[str, float]:
    """Run a plain loop in a process of its own and return the median seconds of its epochs for both phases."""
    script = Path(__file__).with_name("reference_loop.py")
    command = [sys.executable, str(script), "--loop", loop, f"--epochs={epochs}", f"--images={images}"]
    command += ["--seeds", "0"]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)["runs"][0]
    return {phase: result[f"{phase}_seconds_per_epoch"] for phase in CONFIG}


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="3 or more; the first and the last are not counted")
    parser.add_argument("--images", type=int, default=60_000, help="images per epoch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.resolve() if args.out else None
    os.chdir(tempfile.mkdtemp())
    rows: dict[str, list[dict[str, float]]] = {phase: [] for phase in CONFIG}
    for _ in range(args.pairs):
        loops = {loop: time_plain_loop(loop, args.epochs, args.images) for loop in ("sliced", "per_sample")}
        for phase, config in CONFIG.items():
            row = {loop: seconds[phase] for loop, seconds in loops.items()}
            row["framework"] = time_framework(config, args.epochs, args.images)
            row["lightnings_loop"] = time_framework(config, args.epochs, args.images, "--fast_loop=false")
            rows[phase].append(row)
    results: dict[str, Any] = {}
    for phase, pairs in rows.items():
        faster = [r["per_sample"] / r["framework"] for r in pairs]
        slower = [r["framework"] / r["sliced"] for r in pairs]
        share = [r["framework"] / r["lightnings_loop"] for r in pairs]
        results[phase] = {
            "seconds_per_epoch": {k: round(statistics.median(r[k] for r in pairs), 3) for k in pairs[0]},
            "times_faster_than_per_sample": [round(ratio, 2) for ratio in faster],
            "times_the_sliced_loop": [round(ratio, 2) for ratio in slower],
            "share_of_lightnings_loop": [round(ratio, 2) for ratio in share],
            "median_times_faster_than_per_sample": round(statistics.median(faster), 2),
            "median_times_the_sliced_loop": round(statistics.median(slower), 2),
            "median_share_of_lightnings_loop": round(statistics.median(share), 2),
        }
    text = json.dumps({**collect_provenance(), "pairs": args.pairs, **results}, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
