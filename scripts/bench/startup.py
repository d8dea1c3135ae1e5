"""How long until a command answers, and until a training takes its first step, against a bare LightningCLI's?

    python scripts/bench/startup.py --out scripts/bench/results/startup.json

Each is a process of its own, in turn, `--rounds` times, after one round that is not counted and fills the disk's cache;
told are medians of the seconds by the clock and on the processor. `first step` is the forward pass of the first batch
of `configs/quickstart/fine_tune.yaml`, counted from the start of the process; `bare first step` is the same module,
data and config under a LightningCLI with no more than the links that the module needs, without the sanity check of the
validation. `ratio` is the median of the rounds' ratios, with the smallest and the largest.
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

from about import publish

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "fine_tune.yaml")
# Ends the process at the end of the first step.
STOP = """
import os
from sft_lightning.paradigms.base import Paradigm
step = Paradigm.training_step
def first(*words):
    step(*words)
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
MISTAKES = ("unknown command", "unknown option", "no such config", "no such run", "wrong class")


def timed(name: str) -> tuple[float, float]:
    """Seconds by the clock and on the processor."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *COMMANDS[name]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == (2 if name in MISTAKES else 0), done.stderr[-2000:]
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1, help="rounds before them, which do not count")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = [{name: timed(name) for name in COMMANDS} for _ in range(args.rounds + args.warm)][args.warm :]
    found: dict[str, object] = {
        name: {
            kind: round(statistics.median(own[name][k] for own in rounds), 2)
            for k, kind in enumerate(("seconds", "processor_seconds"))
        }
        for name in COMMANDS
    }
    ratios = [round(own["first step"][0] / own["bare first step"][0], 3) for own in rounds]
    found["ratio"] = [round(ratio, 3) for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
    seconds = {name: [round(own[name][0], 2) for own in rounds] for name in COMMANDS}
    publish(args, {"found": found, "first_step_ratios": ratios, "seconds": seconds})


if __name__ == "__main__":
    main()
