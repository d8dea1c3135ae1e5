"""`solve --launcher slurm`: what is refused without a cluster, and whole calls on a real Slurm of one node."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.utils.errors import InputError
from tests.conftest import ROOT

FOLDER = Path("lightning_logs/solve/mine")
SHORT = ["solve", "sample", "--num_labels=20", "--minutes=0.1", "--name=mine", "--candidates=none"]
SLURM = [*SHORT, "--launcher=slurm", "--slurm={time: 10}"]


def test_settings_of_slurm_need_its_launcher(workdir: Path) -> None:
    with pytest.raises(InputError, match=r"slurm is \{'time': 5\}, but launcher is local"):
        solve("sample", slurm={"time": 5})
    assert not Path("lightning_logs").exists()


def test_a_call_beside_a_job_is_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue = workdir / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 7_0\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    known = FOLDER / "slurm" / "job.json"
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps({"job": "7_0", "arguments": {}}))
    assert main(SHORT) == 2
    said = capsys.readouterr().err
    assert "Slurm job 7_0 solves 'mine': add --launcher slurm to wait for it, or end it first (scancel 7_0)" in said
    squeue.write_text("#!/bin/sh\n")  # the job has ended, and nobody waits for it
    assert main([*SHORT, "--labels=none.csv"]) == 2
    assert "none.csv" in capsys.readouterr().err


# From here on with a real Slurm of one node (scripts/slurm/one_node).


@pytest.fixture
def cluster(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of processes that start jobs, which find the package as it is here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("sft_lightning.solver.slurm.POLL", 0.5)
    return dict(os.environ)


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def find_number() -> str:
    path = FOLDER / "slurm" / "job.json"
    return str(json.loads(path.read_text())["job"]) if path.is_file() else ""


def count_jobs() -> int:
    return len(list((FOLDER / "slurm").glob("*_submitted.pkl")))


@pytest.mark.slurm
def test_a_job_solves_and_its_progress_is_shown(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SLURM) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("Submitted to Slurm: ")
    assert " s] labels:   2 labels for each of 10 classes" in shown.err
    assert shown.err.count("Chosen: ") == 1
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["verdict"][0] in shown.out
    assert main(SHORT) == 0  # the same answer here, where little is left to compute
    assert summary["verdict"][0] in capsys.readouterr().out


@pytest.mark.slurm
def test_a_stopped_call_waits_for_its_job_again(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen([sys.executable, "-m", "sft_lightning", *SLURM], env=cluster, stderr=subprocess.PIPE)
    number = wait_for(find_number)
    first.send_signal(signal.SIGINT)
    assert b"keeps running: start solve again to wait for it" in first.communicate()[1]
    assert first.returncode == 128 + signal.SIGINT
    assert main([*SLURM, "--seed=1"]) == 2
    assert f"Slurm job {number} still solves 'mine' with other settings" in capsys.readouterr().err
    assert main(SLURM) == 0
    assert f"Waiting for Slurm job {number}, which was submitted before" in capsys.readouterr().err
    assert count_jobs() == 1


@pytest.mark.slurm
def test_a_requeued_job_goes_on_and_a_canceled_one_is_reported(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    call = [sys.executable, "-m", "sft_lightning", *SLURM]
    waiting = subprocess.Popen(call, env=cluster, stderr=subprocess.PIPE, text=True)
    number = wait_for(find_number)
    wait_for(lambda: list((FOLDER / "units").glob("*")))
    subprocess.run(["scancel", "--signal=USR2", number], check=True)  # as Slurm does ahead of the limit
    said = waiting.communicate(timeout=600)[1]
    assert waiting.returncode == 0, said
    log = FOLDER / "slurm" / f"{number}_0_log.out"
    assert log.read_text().count("Starting with JobEnvironment") == 2
    other = [*call, "--seed=1"]
    waiting = subprocess.Popen(other, env=cluster, stderr=subprocess.PIPE, text=True)
    number = wait_for(find_number)
    wait_for(lambda: (FOLDER / "slurm" / f"{number}_0_log.err").is_file())
    subprocess.run(["scancel", number], check=True)
    said = waiting.communicate(timeout=600)[1]
    assert waiting.returncode == 2
    assert f"Slurm job {number} ended without a result (" in said


@pytest.mark.slurm
def test_a_mistake_that_a_job_finds_is_one_sentence(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SLURM, "--labels=none.csv"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "none.csv" in said[-1]
    assert said[-1].startswith("sft-lightning: ")
