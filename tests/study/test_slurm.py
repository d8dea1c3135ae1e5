"""A study as jobs: of submitit's executor for this machine, whose processes are real, and of a real Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.__main__ import main
from sft_lightning.study import slurm
from sft_lightning.utils import slurm as shared
from sft_lightning.utils.errors import InputError
from tests.conftest import ROOT
from tests.study.test_study import METHODS, Methods, results, written

SLURM = ["--launcher=slurm", "--slurm={time: 10, cpus_per_task: 1}"]
STUDY = Path("lightning_logs/study/small")
ALONE: Methods = {"labels_only": METHODS["labels_only"]}
LONG = {"trainer.max_epochs": 400, "trainer.accelerator": "cpu", "trainer.limit_val_batches": 0}


def ledger() -> dict[str, dict[str, Any]]:
    path = STUDY / "study.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def asked() -> dict[str, tuple[Any, ...]]:
    """What each job was asked, by its number."""
    import submitit

    load = submitit.core.utils.DelayedSubmission.load
    paths = (STUDY / "slurm").glob("*_submitted.pkl")
    return {path.name.removesuffix("_submitted.pkl"): load(path).args for path in paths}


def until(found: Callable[[], Any], seconds: int = 300) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


class Here:
    """The queue of a cluster that is this machine."""

    def __init__(self) -> None:
        self.most = 0
        self.looked: Callable[[], None] = lambda: None

    def list_queue(self) -> set[str]:
        self.looked()
        state = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
        alive = {pid for pid, stat in map(str.split, state.splitlines()) if not stat.startswith("Z")}
        found = alive & asked().keys()
        self.most = max(self.most, sum(words[0].key not in ledger() for words in asked().values()))
        return found


def children(job: str) -> list[str]:
    words = ["ps", "-o", "pid=", "--ppid", job]
    return subprocess.run(words, capture_output=True, text=True).stdout.split()


@pytest.fixture
def here(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    import submitit

    queue = Here()

    def make_executor(place: Path, settings: dict[str, Any], **defaults: Any) -> Any:
        executor = submitit.LocalExecutor(place)
        executor.update_parameters(timeout_min=10)
        return executor

    for name, value in {"make_executor": make_executor, "list_queue": queue.list_queue, "POLL": 0.1}.items():
        monkeypatch.setattr(slurm, name, value)
    monkeypatch.setattr("shutil.which", lambda name: name)
    for name, word in {"PYTHONPATH": str(ROOT), "SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, word)
    yield queue
    for job in queue.list_queue():  # of a test that failed
        subprocess.run(["kill", "-KILL", job, *children(job)], check=True)


@pytest.mark.slow
def test_jobs_train_a_study_in_order(workdir: Path, here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**METHODS["autoencoder"][0], "options": {"model.init_args.network": "mlpp"}}
    methods = {**METHODS, "broken": [broken, METHODS["autoencoder"][1]]}
    assert main(["study", written(workdir, budgets=[20], seeds=[0], methods=methods), *SLURM, "--jobs=2"]) == 0
    shown = capsys.readouterr()
    told = [line for line in shown.err.splitlines() if line[1:3] == "/5"]
    assert [line[0] for line in told] == ["1", "2", "3", "4", "5"]
    assert told[-1].endswith("0 left, about 0 min")
    jobs = asked()
    assert len(jobs) == 4
    assert here.most == 2
    said = [line.removeprefix("Submitted to Slurm: ") for line in shown.err.splitlines() if "Submitted" in line]
    assert {number for line in said for number in line.split(", ")} == jobs.keys()
    starts = {f"{one.method}, {one.stage.name}": start for one, start, *_ in jobs.values()}
    pretrained = next(r["folder"] for key, r in ledger().items() if "pretrain" in r.get("folder", ""))
    assert starts == {
        "labels_only, tune": None,
        "autoencoder, pretrain": None,
        "autoencoder, tune": pretrained,
        "broken, pretrain": None,
    }
    assert any("  broken, pretrain, " in line and "'mlpp'" in line for line in told)
    assert "failed: broken, 20 labels, seed 0: the stage that it starts from failed" in shown.out
    assert not list((STUDY / "slurm").glob("*.json"))
    rows = {row["method"]: row for row in results(workdir) if row["run"]}
    assert {method: (row["steps"], row["tested"]) for method, row in rows.items()} == {
        "labels_only": ("10", "2000"),
        "autoencoder": ("10", "2000"),
    }


@pytest.mark.slow
def test_a_stopped_study_loses_and_repeats_no_job(
    workdir: Path, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20], seeds=[0])

    def stop() -> None:
        raise KeyboardInterrupt

    here.looked = stop  # the jobs are submitted, and nothing else has happened yet
    assert main(["study", config, *SLURM]) == 128 + signal.SIGINT
    assert "sft-lightning: 2 Slurm jobs keep running: start the study again to wait for them" in capsys.readouterr().err
    assert len(asked()) == 2
    looks = 0

    def stop_in_the_loop() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:  # the first look tells which jobs are still there
            raise KeyboardInterrupt

    here.looked = stop_in_the_loop
    assert main(["study", config, *SLURM]) == 128 + signal.SIGINT
    assert "2 Slurm jobs keep running" in capsys.readouterr().err
    assert len(asked()) == 2
    here.looked = lambda: None
    assert main(["study", config]) == 2
    said = capsys.readouterr().err
    assert "Slurm jobs still train study 'small': add --launcher slurm" in said
    assert f"(scancel {' '.join(sorted(asked()))})" in said
    until(lambda: len(list((STUDY / "slurm").glob("*.json"))) == 2 and not here.list_queue())
    assert main(["study", config, *SLURM]) == 0  # both ended while nobody waited
    assert "3/3" in capsys.readouterr().err
    assert len(asked()) == 3
    assert [*map(len, (ledger(), results(workdir)))] == [3, 4]
    assert main(["study", config, *SLURM]) == 0
    assert main(["study", config]) == 0
    assert len(asked()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_job_is_reported_and_resumes_the_next_time(
    workdir: Path, here: Here, how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20], seeds=[0], methods=ALONE, options=LONG)

    def kill() -> None:
        until(lambda: list(STUDY.glob("*/*/*/version_0/checkpoints/last.ckpt")))
        (job,) = asked()
        (process,) = children(job)
        os.kill(int(process), how)
        here.looked = lambda: None

    here.looked = kill
    assert main(["study", config, *SLURM]) == 2
    said = capsys.readouterr().err
    (job,) = asked()
    assert [result["job"] for result in ledger().values()] == [job]
    log = STUDY / "slurm" / f"{job}_0_log.err"
    last = "" if how == signal.SIGKILL else "Stopped: SIGTERM at step "
    assert f"failed: Slurm job {job} ended without a result (" in said
    assert last in said
    assert f"): see {log}" in said
    assert not list((STUDY / "slurm").glob("*.json"))
    assert main(["study", config, *SLURM]) == 0
    assert len(asked()) == 2
    (row,) = (row for row in results(workdir) if row["run"])
    assert Path(row["run"]).name == "version_0"
    assert (Path(row["run"]) / "fit-resumed.yaml").is_file()
    assert (row["steps"], row["failed"]) == ("2000", "")


def test_only_the_first_task_of_a_job_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "try_perform", lambda *arguments: {"failed": arguments[1:]})
    monkeypatch.setattr(slurm, "prepare_process", lambda threads: None)
    one: Any = None
    for rank in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        slurm.SlurmJob()(one, "start", "folder", tmp_path / f"{rank}.json")
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]
    assert json.loads((tmp_path / "0.json").read_text()) == {"failed": ["start", "folder"]}
    again = slurm.SlurmJob().checkpoint(one, "start", "folder", tmp_path)
    assert (type(again.function), again.args) == (slurm.SlurmJob, (one, "start", "folder", tmp_path))


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands, found before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command(folder, "srun", "exit 1")
    command(folder, "sbatch", "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_sbatch_gets_the_settings(tmp_path: Path, commands: Path) -> None:
    settings = {"partition": "gpu", "cpus_per_task": 3, "srun_args": ["--exact"], "time": 60}
    text = shared.make_executor(tmp_path, settings)._make_submission_file_text("python", "")
    for line in ("partition=gpu", "cpus-per-task=3", "time=60"):
        assert f"#SBATCH --{line}\n" in text
    assert " --cpus-per-task=3 --exact python" in text
    text = shared.make_executor(tmp_path, {"cpus_per_task": None})._make_submission_file_text("python", "")
    assert "#SBATCH --time=240\n" in text
    assert "cpus-per-task" not in text
    assert "--cpus-per-task=1 python" in shared.make_executor(tmp_path, {})._make_submission_file_text("python", "")


def test_refused_jobs_give_one_sentence(
    workdir: Path, commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed"
    command(commands, "sbatch", f"env > {workdir}/environment; printf '%b' '{says}' >&2; exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # the study runs in a job
    assert main(["study", written(workdir), *SLURM]) == 2
    last = capsys.readouterr().err.splitlines()[1:]
    assert last == [
        "sft-lightning: Slurm refuses the jobs (invalid partition specified: nope; Batch job submission failed): "
        "correct the settings in slurm, or submit fewer at a time with --jobs, and start the study again"
    ]
    assert "SLURM_JOB_ID" not in (workdir / "environment").read_text()
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_the_queue_is_queried_again_if_slurm_does_not_respond(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "POLL", 0)
    tries = tmp_path / "tries"
    command(commands, "squeue", f'echo "$@" >> {tries}; test $(wc -l < {tries}) -gt 2 || exit 1; printf "12_0\\n13\\n"')
    assert shared.list_queue() == {"12_0", "13"}
    lines = tries.read_text().splitlines()
    assert (len(lines), lines[0]) == (3, "--me --noheader --array --format=%i")
    command(commands, "squeue", f"echo >> {tries}; echo 'no controller' >&2; exit 1")
    with pytest.raises(InputError, match=r"squeue fails \(no controller\): start the command again later"):
        shared.list_queue()
    assert len(tries.read_text().splitlines()) == 63


def test_invalid_settings_give_one_sentence(
    workdir: Path, commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir)

    def said(*words: str) -> str:
        assert main(["study", config, *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "slurm is {'time': 5}, but launcher is local" in said("--slurm={time: 5}")
    assert "launcher is 'slrum' (did you mean 'slurm'?): give local or slurm" in said("--launcher=slrum")
    words = said("--launcher=slurm", "--slurm={partitoin: gpu}")
    assert "slurm has no setting 'partitoin' (did you mean 'partition'" in words
    assert "give account, additional_parameters, " in words
    words = said("--launcher=slurm", "--slurm={setup: module load cuda}")
    assert words.endswith("slurm.setup is 'module load cuda': give a list, such as [module load cuda]")
    words = said("--launcher=slurm", "--slurm={additional_parameters: x}")
    assert words.startswith("sft-lightning: slurm is {'additional_parameters': 'x'}, which submitit refuses: ")
    for missing in ("srun", "sbatch"):
        (commands / missing).unlink()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(commands))
            assert "launcher is slurm, but sbatch or srun is missing here: use a login node" in said("--launcher=slurm")
        command(commands, missing, "exit 1")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "launcher is slurm, which needs submitit: pip install 'sft-lightning[slurm]'" in said("--launcher=slurm")


# From here on with a real Slurm of one node (scripts/slurm/one_node).


@pytest.fixture
def cluster(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of processes that start jobs, which find the package as it is here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slurm, "POLL", 0.5)
    return dict(os.environ)


@pytest.mark.slurm
def test_slurm_gives_the_results_of_this_machine(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20])
    assert main(["study", config, *SLURM, "--jobs=2"]) == 0
    assert "6/6" in capsys.readouterr().err
    of_jobs = results(workdir)
    assert all("folder" in result for result in ledger().values())
    assert len(asked()) == 6
    assert main(["study", config, *SLURM]) == 0  # finished: nothing is submitted
    assert len(asked()) == 6
    assert main(["study", written(workdir, budgets=[20], name="here")]) == 0
    for job, local in zip(of_jobs, results(workdir, "here"), strict=True):
        assert [job[name] for name in ("method", "seed", "steps")] == [
            local[name] for name in ("method", "seed", "steps")
        ]
        # Another number of threads rounds differently.
        assert float(job["test_last"]) == pytest.approx(float(local["test_last"]), abs=0.005)


@pytest.mark.slurm
def test_a_killed_study_waits_for_its_jobs_when_started_again(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20], seeds=[0])
    first = subprocess.Popen([sys.executable, "-m", "sft_lightning", "study", config, *SLURM], env=cluster)
    until(lambda: len(asked()) == 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert slurm.find_queued_jobs(STUDY / "slurm") == {args[0].key: job for job, args in asked().items()}
    assert {job.partition("_")[2] for job in asked()} == {"0", "1"}  # an array
    assert main(["study", config, *SLURM]) == 0
    assert "3/3" in capsys.readouterr().err
    assert len(asked()) == 3  # two before, and the one that had to wait for the first
    assert len(results(workdir)) == 4


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("words", "last"), [(["--signal=KILL", "--full"], ""), ([], "CANCELLED")], ids=["killed", "canceled"]
)
def test_a_canceled_job_is_reported_and_resumes_the_next_time(
    workdir: Path, cluster: dict[str, str], words: list[str], last: str
) -> None:
    options = {**LONG, "trainer.max_epochs": 3000}
    config = written(workdir, budgets=[20], seeds=[0], methods=ALONE, options=options)
    start = [sys.executable, "-m", "sft_lightning", "study", config, *SLURM]
    study = subprocess.Popen(start, env=cluster, stderr=subprocess.PIPE, text=True)
    until(lambda: list(STUDY.glob("*/*/*/version_0/checkpoints/last.ckpt")))
    (job,) = asked()
    subprocess.run(["scancel", *words, job], check=True)
    _, said = study.communicate(timeout=120)
    assert study.returncode == 2
    assert "no run of the study finished" in said
    assert f"Slurm job {job} ended without a result (" in said
    assert last in said
    assert f"): see {STUDY}/slurm/{job}_0_log.err" in said
    again = subprocess.Popen(start, env=cluster)
    until(lambda: list(STUDY.glob("*/*/*/version_0/fit-resumed.yaml")))
    assert not list(STUDY.glob("*/*/*/version_1"))
    again.kill()
    subprocess.run(["scancel", *asked()], check=True)


@pytest.mark.slurm
def test_a_job_is_requeued_at_its_time_limit_and_resumes(
    workdir: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, budgets=[20], seeds=[0], methods=ALONE, options={**LONG, "trainer.max_epochs": 1000})
    study = subprocess.Popen([sys.executable, "-m", "sft_lightning", "study", config, *SLURM], env=cluster)
    until(lambda: list(STUDY.glob("*/*/*/version_0/checkpoints/last.ckpt")))
    (job,) = asked()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as Slurm does ahead of the limit
    assert study.wait(timeout=400) == 0
    assert (STUDY / "slurm" / f"{job}_0_log.out").read_text().count("Starting with JobEnvironment") == 2
    assert len(asked()) == 1
    (row,) = (row for row in results(workdir) if row["run"])
    assert (Path(row["run"]).name, row["steps"]) == ("version_0", "5000")
    assert (Path(row["run"]) / "fit-resumed.yaml").is_file()


@pytest.mark.slurm
def test_tasks_train_one_run_together_and_a_study_may_run_in_a_job(workdir: Path, cluster: dict[str, str]) -> None:
    options = {"trainer.max_epochs": 2, "trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.strategy": "ddp"}
    config = written(workdir, budgets=[20], seeds=[0], methods=ALONE, options=options)
    words = [sys.executable, "-m", "sft_lightning", "study", config, "--launcher=slurm"]
    words += ["--slurm={time: 10, ntasks_per_node: 2}"]
    inside = {**cluster, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0"}
    done = subprocess.run(words, env=inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = (row for row in results(workdir) if row["run"])
    assert (Path(row["run"]).name, row["steps"], row["tested"]) == ("version_0", "10", "2000")
    (job,) = asked()
    logs = [(STUDY / "slurm" / f"{job}_{rank}_log.out").read_text() for rank in (0, 1)]
    assert all(f"global_rank={rank}(2)" in log for rank, log in enumerate(logs))
    assert all("Job completed successfully" in log for log in logs)
