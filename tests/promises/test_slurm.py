"""The scripts for a cluster on a real Slurm (scripts/slurm/one_node): what is requeued ends as if it had not been."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.promises.test_exact_resume import RUNS, same
from tests.study.test_study import written

SCRIPTS = ROOT / "scripts" / "slurm"
TWO = ["--ntasks-per-node=2"]
STEPS = ["--data.init_args.batch_size=8", "--data.init_args.steps_per_epoch=60", "--trainer.accelerator=cpu"]


def submitted(script: str, folder: Path, out: str, ours: list[str], given: list[str]) -> str:
    """The number of a job.

    Args:
        script: Its file.
        folder: Where it runs.
        out: The file for what it says.
        ours: Options of sbatch.
        given: Options of the command.
    """
    words = ["sbatch", "--parsable", f"--output={folder / out}", f"--chdir={folder}", *ours]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words += [str(SCRIPTS / script), *given]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(path: Path, text: str, seconds: int = 400) -> str:
    for _ in range(seconds):
        time.sleep(1)
        if path.is_file() and text in path.read_text():
            return path.read_text()
    raise AssertionError(path.read_text() if path.is_file() else f"no {path}")


def wait_until(found: Callable[[], Any], seconds: int = 400) -> None:
    for _ in range(5 * seconds):
        if found():
            return
        time.sleep(0.2)
    raise AssertionError("waited in vain")


@pytest.mark.slurm
@pytest.mark.parametrize("how", ["asked", "requeued from outside", "requeued before its first checkpoint"])
def test_a_requeued_job_ends_where_an_undisturbed_one_does(how: str, tmp_path: Path) -> None:
    import torch

    given = [*RUNS["joint"], *STEPS, "--trainer.max_epochs=3"]
    whole, parts = (submitted("fit.sbatch", tmp_path, out, TWO, given) for out in ("whole.txt", "parts.txt"))
    wait_for(tmp_path / "whole.txt", "Finished at step 180")
    folders = [tmp_path / "lightning_logs" / "slurm" / job for job in (whole, parts)]
    if how == "requeued before its first checkpoint":
        wait_for(tmp_path / "parts.txt", "All distributed processes registered")
    else:
        wait_until(lambda: list(folders[1].glob("version_0/checkpoints/last.ckpt")))
    asked = ["scancel", "--signal=USR1", parts] if how == "asked" else ["scontrol", "requeue", parts]
    subprocess.run(asked, check=True)
    said = wait_for(tmp_path / "parts.txt", "Finished at step 180")
    if how == "asked":
        assert said.count(f"saved, requeued job {parts}") == 1
    assert said.count("All distributed processes registered") == 2
    states = [torch.load(next(f.glob("version_*/checkpoints/last.ckpt")), weights_only=True) for f in folders]
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(states[0][name], states[1][name])


@pytest.mark.slurm
def test_a_job_ends_across_its_time_limits(tmp_path: Path) -> None:
    given = [*RUNS["joint"], *STEPS, "--trainer.max_epochs=20", "--trainer.limit_val_batches=0"]
    job = submitted("fit.sbatch", tmp_path, "out.txt", [*TWO, "--time=2", "--signal=USR1@20"], given)
    said = wait_for(tmp_path / "out.txt", "Finished at step 1200", 2400)
    times = said.count("All distributed processes registered")
    assert times > 1
    assert said.count(f"saved, requeued job {job}") == times - 1
    assert "DUE TO TIME LIMIT" not in said
    assert [path.name for path in (tmp_path / "lightning_logs" / "slurm" / job).iterdir()] == ["version_0"]


@pytest.mark.slurm
def test_a_study_goes_on_where_its_job_is_requeued(tmp_path: Path) -> None:
    options = {"trainer.max_epochs": 200, "trainer.accelerator": "cpu", "trainer.limit_val_batches": 0}
    config = written(tmp_path, budgets=[20], seeds=[0], options=options)
    job = submitted("study.sbatch", tmp_path, "out.txt", ["--time=30"], [config, "--slurm={time: 10}"])
    folder = tmp_path / "lightning_logs" / "study" / "small"
    wait_until(lambda: list((folder / "slurm").glob("*_submitted.pkl")))
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], check=True)  # as Slurm does ahead of the limit
    said = wait_for(tmp_path / "out.txt", "report.html")
    assert said.count("Study small: 3 trainings") == 2
    assert said.count("report.html") == 1
    assert len(list((folder / "slurm").glob("*_submitted.pkl"))) == 3  # nothing is trained twice
    results = json.loads((folder / "study.json").read_text())
    assert [Path(result["folder"]).name for result in results.values()] == ["version_0"] * 3
