"""A long training of a small semi-supervised config: memory, open files, threads, size of the logs.

    OMP_NUM_THREADS=1 python scripts/bench/endurance.py --out scripts/bench/results/endurance.json

One process trains through the command line with shipped defaults: TensorBoard and CSV, the bar of a terminal,
checkpoints, and a validation every 250 steps. Memory is what is resident (RSS), the mean over each thousand steps;
the first thousand holds the start, so that its share is given with and without it. Linux only: it reads `/proc`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from about import publish
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.cli.lightning_cli import run

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "semi_supervised"
SPAN = 1000  # steps that make a line
OFTEN = 10  # steps between two looks at the memory
PAGE = os.sysconf("SC_PAGE_SIZE")


class Terminal:
    """Takes the bar as a terminal would, and keeps nothing of it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Forgets it."""
        return len(text)

    def flush(self) -> None:
        """Nothing."""


class Samples(Callback):
    """A line for each thousand steps."""

    lines: list[dict[str, Any]]
    memory: list[int]
    started: float

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.lines, self.memory, self.started = [], [], time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the memory, and at all else once in a thousand steps."""
        step = trainer.global_step
        if step % OFTEN == 0:
            self.memory.append(resident())
        if step % SPAN == 0:
            now = time.perf_counter()
            assert trainer.log_dir is not None
            self.lines.append({
                "step": step,
                "ms_per_step": round((now - self.started) / SPAN * 1000, 2),
                "memory": round(statistics.fmean(self.memory)),
                "most_memory": max(self.memory),
                **counted(),
                **sizes(Path(trainer.log_dir)),
            })  # fmt: skip
            self.memory, self.started = [], now


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def counted() -> dict[str, int]:
    """Open files (but for that of the counting itself) and threads."""
    return {"files": len(os.listdir("/proc/self/fd")) - 1, "threads": len(os.listdir("/proc/self/task"))}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of logs and checkpoints in a run's folder, and how many of each."""
    found: dict[str, int] = {}
    for name, pattern in {"events": "events.out.*", "metrics": "metrics.csv", "checkpoints": "checkpoints/*"}.items():
        files = list(folder.glob(pattern))
        found |= {f"{name}_files": len(files), f"{name}_bytes": sum(path.stat().st_size for path in files)}
    return found


def judged(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the promise asks: growth of the memory, whether counts are constant, bytes that the logs add.

    Args:
        lines: Of `Samples`, at least three.
    """
    first, second, *_, last = lines
    spans = len(lines) - 1
    return {
        "memory_last_by_first": round(last["memory"] / first["memory"], 4),
        "memory_last_by_second": round(last["memory"] / second["memory"], 4),
        "files": sorted({line["files"] for line in lines}),
        "threads": sorted({line["threads"] for line in lines}),
        "checkpoints": sorted({line["checkpoints_files"] for line in lines}),
        "events_files": last["events_files"],
        "events_bytes_per_1000_steps": round((last["events_bytes"] - first["events_bytes"]) / spans),
        "metrics_bytes_per_1000_steps": round((last["metrics_bytes"] - first["metrics_bytes"]) / spans),
        "ms_per_step_last_by_second": round(last["ms_per_step"] / second["ms_per_step"], 3),
    }


def main() -> None:
    """Trains and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--strategy", default="pseudo_label", help="name of a file in configs/semi_supervised")
    parser.add_argument("--backbone", default="mlp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps < 3 * SPAN:
        parser.error(f"--steps is {args.steps}: give {3 * SPAN} or more")
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    words = ["fit", f"--config={CONFIGS / 'shared.yaml'}", f"--config={CONFIGS / args.strategy}.yaml"]
    words += [f"--model.init_args.backbone={args.backbone}", "--data.init_args.batch_size=4"]
    words += ["--data.init_args.unlabeled_ratio=2", "--trainer.max_epochs=-1", f"--trainer.max_steps={args.steps}"]
    words += ["--trainer.callbacks=endurance.Samples", "--trainer.accelerator=cpu"]
    terminal, sys.stdout = sys.stdout, Terminal()
    try:
        done = run(words)
    finally:
        sys.stdout = terminal
    (samples,) = (c for c in done.trainer.callbacks if type(c).__name__ == "Samples")  # type: ignore[attr-defined]
    publish(args, {"judged": judged(samples.lines), "lines": samples.lines})


if __name__ == "__main__":
    main()
