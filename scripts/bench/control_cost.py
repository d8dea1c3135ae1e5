"""Measure what a control (`control: true`) adds to a training step of FixMatch.

    python scripts/bench/control_cost.py --pairs 3 --out scripts/bench/results/control_cost.json

Pairs of trainings with and without the control take turns, through the command line, with the shipped config on the
sample (32 + 224 images, a weak and a strong view of labeled ones). It counts the CPU time of the process, which other
processes on the machine hardly change, and prints JSON with the median CPU seconds of a step, in epochs after the
first, and the ratios of the pairs.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from commands import find_callback, fit
from lightning.pytorch import Callback, LightningModule, Trainer
from provenance import publish

CONFIGS = ["semi_supervised/shared.yaml", "semi_supervised/fixmatch.yaml"]
STEPS, EPOCHS = 6, 4


class CPUClock(Callback):
    """Read the CPU time of the process after each training step."""

    def __init__(self) -> None:
        """Start without readings."""
        self.epochs: list[list[float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the readings of an epoch."""
        self.epochs.append([])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Read the clock."""
        self.epochs[-1].append(time.process_time())


def train(control: bool) -> float:
    """Return the median CPU seconds of a training step.

    Args:
        control: Whether a control is trained.
    """
    argv = [f"--data.init_args.steps_per_epoch={STEPS}", f"--trainer.max_epochs={EPOCHS}"]
    argv += [f"--model.init_args.control={str(control).lower()}", "--trainer.callbacks=control_cost.CPUClock"]
    _, cli = fit(CONFIGS, "control", 0, *argv)
    epochs: list[list[float]] = find_callback(cli, "CPUClock").epochs[1:]
    return statistics.median(after - before for times in epochs for before, after in pairwise(times))


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for k in range(args.pairs):
        for control in (False, True) if k % 2 == 0 else (True, False):
            seconds[control].append(train(control))
    ratios = [both / alone for both, alone in zip(seconds[True], seconds[False], strict=True)]
    publish(
        args,
        {
            "cpu_seconds_without": [round(s, 4) for s in seconds[False]],
            "cpu_seconds_with": [round(s, 4) for s in seconds[True]],
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio": round(statistics.median(ratios), 3),
        },
    )


if __name__ == "__main__":
    main()
