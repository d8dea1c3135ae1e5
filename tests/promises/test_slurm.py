"""Two processes on a real Slurm (scripts/slurm/one_node): asked to make way, the job is requeued and ends the same."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.promises.test_exact_resume import RUNS, same

STEPS = ["--trainer.max_epochs=3", "--data.init_args.steps_per_epoch=60", "--data.init_args.batch_size=8"]


def submitted(folder: Path, out: str) -> str:
    words = ["sbatch", "--parsable", "--ntasks-per-node=2", f"--output={folder / out}", f"--chdir={folder}"]
    words += [str(ROOT / "scripts" / "slurm" / "fit.sbatch"), *RUNS["joint"], *STEPS, "--trainer.accelerator=cpu"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(path: Path, text: str, seconds: int = 300) -> str:
    for _ in range(seconds):
        time.sleep(1)
        if path.is_file() and text in path.read_text():
            return path.read_text()
    raise AssertionError(path.read_text() if path.is_file() else f"no {path}")


@pytest.mark.slurm
@pytest.mark.parametrize("how", ["asked", "requeued from outside"])
def test_a_requeued_job_ends_where_an_undisturbed_one_does(how: str, tmp_path: Path) -> None:
    import torch

    whole, parts = submitted(tmp_path, "whole.txt"), submitted(tmp_path, "parts.txt")
    wait_for(tmp_path / "whole.txt", "Finished at step 180")
    runs = [tmp_path / "lightning_logs" / "slurm" / job / "version_0" for job in (whole, parts)]
    for _ in range(300):
        time.sleep(0.2)
        if (runs[1] / "checkpoints" / "last.ckpt").is_file():
            break
    asked = ["scancel", "--signal=USR1", parts] if how == "asked" else ["scontrol", "requeue", parts]
    subprocess.run(asked, check=True)
    said = wait_for(tmp_path / "parts.txt", "Finished at step 180")
    if how == "asked":
        assert said.count(f"saved, requeued job {parts}") == 1
    assert said.count("All distributed processes registered") == 2
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs]
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(states[0][name], states[1][name])
