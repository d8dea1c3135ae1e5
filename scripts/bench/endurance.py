"""Track memory, open files, threads and the size of the logs through a long semi-supervised training.

    OMP_NUM_THREADS=1 python scripts/bench/endurance.py --out scripts/bench/results/endurance.json

One process trains through the command line with shipped defaults: TensorBoard and CSV, a terminal's progress bar,
checkpoints, and a validation every 250 steps. Memory is the resident set size (RSS), averaged over each thousand steps.
The first thousand includes the start, so growth is given relative to both the first and the second. Linux only: it
reads `/proc`.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from commands import CONFIGS, find_callback
from lightning.pytorch import Callback, LightningModule, Trainer
from provenance import publish
from terminal import discard_terminal_output

from sft_lightning.cli.lightning_cli import run

SPAN = 1000  # steps per line of the result
MEMORY_INTERVAL = 10  # steps between two samples of the memory
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class ResourceMonitor(Callback):
    """Record resources in one line for each thousand steps."""

    lines: list[dict[str, Any]]
    memory: list[int]
    started: float

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the records and start the clock."""
        self.lines, self.memory, self.started = [], [], time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample the memory, and record everything once in a thousand steps."""
        step = trainer.global_step
        if step % MEMORY_INTERVAL == 0:
            self.memory.append(measure_rss())
        if step % SPAN == 0:
            now = time.perf_counter()
            assert trainer.log_dir is not None
            self.lines.append({
                "step": step,
                "ms_per_step": round((now - self.started) / SPAN * 1000, 2),
                "memory": round(statistics.fmean(self.memory)),
                "most_memory": max(self.memory),
                **count_files_and_threads(),
                **measure_run_folder(Path(trainer.log_dir)),
            })  # fmt: skip
            self.memory, self.started = [], now


def measure_rss() -> int:
    """Return the resident set size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


def count_files_and_threads() -> dict[str, int]:
    """Count the open files and the threads of this process."""
    # Listing the folder opens a file, which does not count.
    return {"files": len(os.listdir("/proc/self/fd")) - 1, "threads": len(os.listdir("/proc/self/task"))}


def measure_run_folder(folder: Path) -> dict[str, int]:
    """Return number and bytes of the logs and checkpoints in a run's folder."""
    sizes: dict[str, int] = {}
    for name, pattern in {"events": "events.out.*", "metrics": "metrics.csv", "checkpoints": "checkpoints/*"}.items():
        files = list(folder.glob(pattern))
        sizes |= {f"{name}_files": len(files), f"{name}_bytes": sum(path.stat().st_size for path in files)}
    return sizes


def summarize(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize what must stay constant: growth of memory, numbers of files and threads, and growth of the logs.

    Args:
        lines: Lines of a `ResourceMonitor`, at least three.
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
    """Train and print JSON."""
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
    configs = CONFIGS / "semi_supervised"
    argv = ["fit", f"--config={configs / 'shared.yaml'}", f"--config={configs / args.strategy}.yaml"]
    argv += [f"--model.init_args.backbone={args.backbone}", "--data.init_args.batch_size=4"]
    argv += ["--model.init_args.control=false"]
    argv += ["--data.init_args.unlabeled_ratio=2", "--trainer.max_epochs=-1", f"--trainer.max_steps={args.steps}"]
    argv += ["--trainer.callbacks=endurance.ResourceMonitor", "--trainer.accelerator=cpu"]
    with discard_terminal_output():
        cli = run(argv)
    lines = find_callback(cli, "ResourceMonitor").lines
    publish(args, {"judged": summarize(lines), "lines": lines})


if __name__ == "__main__":
    main()
