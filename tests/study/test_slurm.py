"""A study on a real Slurm of one node (scripts/slurm/one_node)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.__main__ import main
from sft_lightning.study import slurm
from tests.conftest import ROOT
from tests.study.test_study import METHODS, results, written

SLURM = ["--launcher=slurm", "--jobs=2", "--slurm={time: 10, cpus_per_task: 1}"]
STUDY = Path("lightning_logs/study/small")


def queue() -> list[str]:
    words = ["squeue", "--noheader", "--array", "--format=%i"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def ledger() -> dict[str, dict[str, Any]]:
    path = STUDY / "study.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def submitted() -> int:
    return len(list((STUDY / "slurm").glob("*_submitted.pkl")))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Jobs find the package as it is here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slurm, "POLL", 0.5)
    return dict(os.environ)


@pytest.mark.slurm
def test_the_same_study_as_jobs(workdir: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    config = written(workdir, budgets=[20])
    assert main(["study", config, *SLURM]) == 0
    assert "6/6" in capsys.readouterr().err
    of_jobs = results(workdir)
    assert all("folder" in result for result in ledger().values())
    assert submitted() == 6
    assert main(["study", config, *SLURM]) == 0  # finished: nothing is submitted
    assert submitted() == 6
    assert main(["study", written(workdir, budgets=[20], name="here")]) == 0
    for job, here in zip(of_jobs, results(workdir, "here"), strict=True):
        assert [job[name] for name in ("method", "seed", "steps")] == [
            here[name] for name in ("method", "seed", "steps")
        ]
        # Another number of threads rounds differently.
        assert float(job["test_last"]) == pytest.approx(float(here["test_last"]), abs=0.005)


@pytest.mark.slurm
def test_stopped_and_started_again_it_waits_for_the_jobs_that_are_there(
    workdir: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20], seeds=[0])
    first = subprocess.Popen([sys.executable, "-m", "sft_lightning", "study", config, *SLURM], env=environment)
    while sum("job" in result for result in ledger().values()) < 2:
        time.sleep(0.05)
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    jobs = {result["job"] for result in ledger().values()}
    assert len(jobs & set(queue())) == 2
    assert main(["study", config, *SLURM]) == 0
    assert "3/3" in capsys.readouterr().err
    assert submitted() == 3  # two before, and the one that had to wait for the first
    assert len(results(workdir)) == 4


@pytest.mark.slurm
def test_a_killed_job_is_told_and_goes_on_the_next_time(workdir: Path, environment: dict[str, str]) -> None:
    methods = {"labels_only": METHODS["labels_only"]}
    options = {"trainer.max_epochs": 3000, "trainer.accelerator": "cpu"}
    config = written(workdir, budgets=[20], seeds=[0], methods=methods, options=options)
    words = [sys.executable, "-m", "sft_lightning", "study", config, *SLURM]
    study = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(STUDY.glob("*/version_0/checkpoints/last.ckpt")):
        time.sleep(0.1)
        assert study.poll() is None
    (job,) = (result["job"] for result in ledger().values())
    subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
    _, said = study.communicate(timeout=120)
    assert study.returncode == 2
    assert "no run of the study finished" in said
    assert f"Slurm job {job} ended without a result: see {STUDY}/slurm/{job}_0_log.err" in said
    assert [result["failed"][:9] for result in ledger().values()] == ["Slurm job"]
    again = subprocess.Popen(words, env=environment)
    while not list(STUDY.glob("*/version_0/fit-resumed.yaml")):
        time.sleep(0.1)
        assert again.poll() is None
    assert not list(STUDY.glob("*/version_1"))
    again.kill()
    subprocess.run(["scancel", "--full", *(result["job"] for result in ledger().values())], check=True)


def test_bad_input_is_one_sentence(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir)
    assert main(["study", config, "--slurm={time: 5}"]) == 2
    assert "slurm is {'time': 5}, but launcher is local" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(workdir))
        assert main(["study", config, "--launcher=slurm"]) == 2
    assert "launcher is slurm, but there is no sbatch here" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert main(["study", config, "--launcher=slurm", "--slurm={partitoin: gpu}"]) == 2
    assert "slurm has no setting 'partitoin' (did you mean 'partition'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["study", config, "--launcher=slurm"]) == 2
    assert "needs submitit: pip install 'sft-lightning[slurm]'" in capsys.readouterr().err
