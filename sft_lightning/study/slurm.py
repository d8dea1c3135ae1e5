"""`sft-lightning study --launcher slurm`: the trainings of a study as array jobs, through submitit.

This process submits what is ready, waits for the results, and is the only one that writes `study.json`. Each job writes
its result as a file of its own, and submitit keeps beside it what each job was asked. A study that was stopped at any
moment and is started again therefore knows what the jobs in the queue train, and waits for them instead of submitting
them twice.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from sft_lightning.cli.lightning_cli import destroy_process_group
from sft_lightning.study.plan import StudyRun
from sft_lightning.study.runner import Ledger, RunResult, check_result, find_start_folder, prepare_process, try_perform
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, StoppedBySignal, did_you_mean
from sft_lightning.utils.json_files import read_json

POLL = 5.0  # seconds between two looks at the queue
_LISTS = ("setup", "teardown", "srun_args")  # submitit takes the letters of a text for its lines


class SlurmJob:
    """One training as a job; at its time limit, or before it makes way for another job, it is requeued and goes on."""

    def __call__(self, one: StudyRun, start: str | None, folder: str, file: Path) -> None:
        """Trains and writes the result.

        Args:
            one: The run.
            start: Folder of the run whose weights it starts from, or None.
            folder: Below `lightning_logs`.
            file: Gets the result.
        """
        prepare_process(int(os.environ.get("SLURM_CPUS_PER_TASK", count_cores())))
        result = try_perform(one, start, folder)
        if os.environ.get("SLURM_PROCID", "0") == "0":  # of several tasks, which train together
            write_json(file, result)
        destroy_process_group()

    def checkpoint(self, *args: Any) -> Any:
        """What submitit puts into the queue again.

        Args:
            args: Of the call.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args)


def train_on_slurm(
    waiting: list[StudyRun],
    ledger: Ledger,
    folder: str,
    jobs: int | None,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[tuple[StudyRun, RunResult]]:
    """Each run with its result, as soon as it has one.

    Args:
        waiting: What is to be trained.
        ledger: With the results of what runs start from.
        folder: Below `lightning_logs`.
        jobs: So many are in the queue at the same time; None for all that are ready.
        settings: Of sbatch, as submitit names them.
        say: Told what was submitted.

    Raises:
        InputError: There is no Slurm or no submitit, or a setting is wrong.
        Stopped: The user did not want to wait any longer.
    """
    place = ledger.path.parent / "slurm"
    executor = make_executor(place, settings)
    # A job whose result is known may take a while to leave the queue.
    there = {k: job for k, job in find_queued_jobs(place).items() if ledger.results.get(k, {}).get("job") != job}
    known = [one for one in waiting if one.key in there or _result_path(place, one).is_file()]
    running = {one.key: (one, there.get(one.key, "")) for one in known}
    waiting = [one for one in waiting if one.key not in running]
    gone: set[str] = set()
    try:
        while waiting or running:
            open_keys = {one.key for one in waiting} | running.keys()
            ready = [one for one in waiting if one.start not in open_keys]
            for one in [one for one in ready if find_start_folder(one, ledger) == ""]:
                ready.remove(one)
                waiting.remove(one)
                yield one, try_perform(one, "", folder)
            ready = ready if jobs is None else ready[: max(0, jobs - len(running))]
            if ready:
                words = [(one, find_start_folder(one, ledger), folder, _result_path(place, one)) for one in ready]
                numbers = _submit(executor, words)
                say(f"Submitted to Slurm: {', '.join(numbers)}")
                running |= {one.key: (one, number) for one, number in zip(ready, numbers, strict=True)}
                waiting = [one for one in waiting if one.key not in running]
            queue = list_queue()
            for key, (one, number) in list(running.items()):
                file = _result_path(place, one)
                if file.is_file():
                    del running[key]
                    yield one, {**_read_result(file), "job": number}
                    file.unlink()  # it stands in the ledger now
                elif number in queue:
                    gone.discard(number)
                elif number in gone:  # a second time: its result is not only late
                    del running[key]
                    yield one, {"failed": _describe_end(number, place / f"{number}_0_log.err"), "job": number}
                else:
                    gone.add(number)
            if running:
                time.sleep(POLL)
    except KeyboardInterrupt as error:
        told = f"{len(running)} jobs of Slurm go on: start the study again to wait for them, scancel ends them"
        raise StoppedBySignal(told, signal.SIGINT) from error


def _result_path(place: Path, one: StudyRun) -> Path:
    return (place / f"{one.key}.json").absolute()


def _read_result(file: Path) -> RunResult:
    """What a job wrote."""
    try:
        return check_result(read_json(file, "remove it to run its training anew"))
    except ValueError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}): remove it to run its training anew") from error


def _describe_end(number: str, log: Path) -> str:
    """Why a job has no result: Slurm's own word on it, which stands between asterisks, or the last of the log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = next((line for line in reversed(lines) if "***" in line), (lines or ["nothing is logged"])[-1])
    return f"Slurm job {number} ended without a result ({last}): see {log}"


def _submit(executor: Any, words: list[tuple[Any, ...]]) -> list[str]:
    """The numbers of the jobs."""
    import submitit

    try:
        # Clean, as the study itself may run in a job. What submitit prints of an error is told below.
        with submitit.helpers.clean_env(), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(SlurmJob(), *these) for these in words]
    except RuntimeError as error:  # submitit's are such
        said = "; ".join(str(error).replace("sbatch: error: ", "").splitlines())
        raise InputError(
            f"Slurm refuses the jobs ({said}): mend the settings in slurm, or let --jobs submit fewer at a time, and "
            "start the study again"
        ) from error
    return [job.job_id for job in jobs]


def find_queued_jobs(place: Path) -> dict[str, str]:
    """The jobs of a study that wait or run, by the keys of their runs.

    Args:
        place: Where submitit keeps its files.

    Raises:
        InputError: Slurm does not answer for minutes.
    """
    asked = {path.name.removesuffix("_submitted.pkl"): path for path in place.glob("*_submitted.pkl")}
    if not asked or shutil.which("squeue") is None:
        return {}
    found = {}
    for number in list_queue() & asked.keys():
        # Searched and never unpickled, which could run code: the name of the result's file stands in it as it is.
        if key := re.search(rb"([0-9a-f]{64})\.json", asked[number].read_bytes()):
            found[key[1].decode()] = number
    return found


def list_queue() -> set[str]:
    """The jobs of this user that wait or run.

    Raises:
        InputError: Slurm does not answer for minutes.
    """
    for _ in range(60):
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True
        )
        if done.returncode == 0:
            return set(done.stdout.split())
        time.sleep(POLL)
    raise InputError(f"launcher is slurm, but squeue fails ({done.stderr.strip()}): start the study again later")


def make_executor(place: Path, settings: dict[str, Any]) -> Any:
    """What submits.

    Args:
        place: For the files of the jobs.
        settings: Of sbatch, as submitit names them.

    Raises:
        InputError: There is no Slurm or no submitit, or a setting is wrong.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("launcher is slurm, which needs submitit: pip install 'sft-lightning[slurm]'") from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError("launcher is slurm, but there is no sbatch here: use a login node, or leave launcher out")
    executor = submitit.SlurmExecutor(place)
    known = sorted(executor._valid_parameters())
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"slurm has no setting {name!r}{did_you_mean(name, known)}: give {', '.join(known)}")
        if name in _LISTS and not isinstance(value, list):
            raise InputError(f"slurm.{name} is {value!r}: give a list, such as [{value}]")
    full = {"job_name": "sft-study", "time": 240, "cpus_per_task": 1, **settings}
    if full["cpus_per_task"] is not None:  # since Slurm 22.05 srun does not take it from sbatch
        full["srun_args"] = [f"--cpus-per-task={full['cpus_per_task']}", *full.get("srun_args", [])]
    try:
        executor.update_parameters(**full)
    except (TypeError, ValueError) as error:
        raise InputError(f"slurm is {settings}, of which submitit says: {error}; mend it") from error
    return executor
