"""Measure the response time of commands, and the time to the first training step against a bare LightningCLI.

    python scripts/bench/startup.py --out scripts/bench/results/startup.json

Each command runs in a process of its own, in turn, `--rounds` times, after one round that fills the disk's cache and is
not counted. The result has the medians of wall time and of processor time. `first step` is the time from the start of
the process to the end of the first forward pass of `configs/quickstart/fine_tune.yaml`; `bare first step` is the same
module, data and config under a LightningCLI that has only the links that the module needs and no sanity check. `ratio`
is the median of the rounds' ratios, with the smallest and the largest.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provenance import publish

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "fine_tune.yaml")
# End the process after the first step.
STOP = """
import os
from sft_lightning.paradigms.base import Paradigm
step = Paradigm.training_step
def first(*args):
    step(*args)
    os._exit(0)
Paradigm.training_step = first
"""
OURS = f"from sft_lightning.__main__ import main\n{STOP}\nmain(['fit', '--config', {CONFIG!r}])"
BARE = f"""
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from sft_lightning import FineTuneClassifier, ImageDataModule, WarmupCosine
{STOP}
class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--run_name")
        for name in ("num_classes", "class_names", "image_shape"):
            parser.link_arguments(f"data.{{name}}", f"model.init_args.{{name}}", apply_on="instantiate")
CLI(LightningModule, subclass_mode_model=True, auto_configure_optimizers=False,
    trainer_defaults={{"num_sanity_val_steps": 0}}, args=["fit", "--config", {CONFIG!r}])
"""
COMMANDS = {
    "help": ["-m", "sft_lightning", "--help"],
    "unknown command": ["-m", "sft_lightning", "fti"],
    "unknown option": ["-m", "sft_lightning", "fit", "--config", CONFIG, "--trainer.max_epoch", "3"],
    "no such config": ["-m", "sft_lightning", "fit", "--config", "gone.yaml"],
    "no such run": ["-m", "sft_lightning", "test", "gone"],
    "lineage --help": ["-m", "sft_lightning", "lineage", "--help"],
    "fit --help": ["-m", "sft_lightning", "fit", "--help"],
    "wrong class": ["-m", "sft_lightning", "fit", "--config", CONFIG, "--model", "FineTuneClasifier"],
    "import torch": ["-c", "import torch"],
    "import LightningCLI": ["-c", "from lightning.pytorch.cli import LightningCLI"],
    "first step": ["-c", OURS],
    "bare first step": ["-c", BARE],
}
INVALID = ("unknown command", "unknown option", "no such config", "no such run", "wrong class")


def time_command(name: str) -> tuple[float, float]:
    """Run a command of `COMMANDS` and return its wall time and its processor time in seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        process = subprocess.run(
            [sys.executable, *COMMANDS[name]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == (2 if name in INVALID else 0), process.stderr[-2000:]
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time all commands and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1, help="rounds before these, which are not counted")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = [{name: time_command(name) for name in COMMANDS} for _ in range(args.rounds + args.warm)][args.warm :]
    medians: dict[str, object] = {
        name: {
            kind: round(statistics.median(times[name][k] for times in rounds), 2)
            for k, kind in enumerate(("seconds", "processor_seconds"))
        }
        for name in COMMANDS
    }
    ratios = [round(times["first step"][0] / times["bare first step"][0], 3) for times in rounds]
    medians["ratio"] = [round(ratio, 3) for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
    seconds = {name: [round(times[name][0], 2) for times in rounds] for name in COMMANDS}
    publish(args, {"found": medians, "first_step_ratios": ratios, "seconds": seconds})


if __name__ == "__main__":
    main()
