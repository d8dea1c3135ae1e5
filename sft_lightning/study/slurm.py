"""`sft-lightning study --launcher slurm`: train the runs of a study as array jobs, through submitit.

This process submits the runs that are ready, waits for their results, and alone writes `study.json`. Each job writes
its result to a file, beside which submitit keeps the arguments of the job. A study that was stopped at any moment
therefore knows which runs the jobs in the queue train, and waits for them instead of submitting them twice.
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

POLL = 5.0  # seconds between two queries of the queue
_LISTS = ("setup", "teardown", "srun_args")  # submitit would take each character of a string for a line


class SlurmJob:
    """A run as a job, which Slurm requeues at its time limit or on preemption, and which then resumes."""

    def __call__(self, run: StudyRun, start: str | None, folder: str, file: Path) -> None:
        """Train a run and write its result.

        Args:
            run: Run to train.
            start: Folder of the run whose weights it starts from, or None.
            folder: Folder of the study below `lightning_logs`.
            file: Path of the result.
        """
        prepare_process(int(os.environ.get("SLURM_CPUS_PER_TASK", count_cores())))
        result = try_perform(run, start, folder)
        if os.environ.get("SLURM_PROCID", "0") == "0":  # the first of the tasks that train the run together
            write_json(file, result)
        destroy_process_group()

    def checkpoint(self, *args: Any) -> Any:
        """Return the call that submitit requeues.

        Args:
            args: Arguments of the interrupted call.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args)


def train_on_slurm(
    waiting: list[StudyRun],
    ledger: Ledger,
    folder: str,
    jobs: int | None,
    settings: dict[str, Any],
    report_progress: Callable[[str], None],
) -> Iterator[tuple[StudyRun, RunResult]]:
    """Submit runs as jobs and yield each with its result as soon as it has one.

    Args:
        waiting: Runs to train.
        ledger: Results of the runs that these start from.
        folder: Folder of the study below `lightning_logs`.
        jobs: Maximum number of jobs in the queue; None to submit all runs that are ready.
        settings: Settings of sbatch as submitit names them.
        report_progress: Function that gets a line after each submission.

    Raises:
        InputError: Slurm or submitit is missing, or a setting is wrong.
        StoppedBySignal: The user stopped waiting.
    """
    directory = ledger.path.parent / "slurm"
    executor = make_executor(directory, settings)
    # A job may stay in the queue for a while after it wrote its result.
    queued = {k: job for k, job in find_queued_jobs(directory).items() if ledger.results.get(k, {}).get("job") != job}
    known = [run for run in waiting if run.key in queued or _result_path(directory, run).is_file()]
    running = {run.key: (run, queued.get(run.key, "")) for run in known}
    waiting = [run for run in waiting if run.key not in running]
    gone: set[str] = set()
    try:
        while waiting or running:
            open_keys = {run.key for run in waiting} | running.keys()
            ready = [run for run in waiting if run.start not in open_keys]
            for run in [run for run in ready if find_start_folder(run, ledger) == ""]:
                ready.remove(run)
                waiting.remove(run)
                yield run, try_perform(run, "", folder)
            ready = ready if jobs is None else ready[: max(0, jobs - len(running))]
            if ready:
                calls = [(run, find_start_folder(run, ledger), folder, _result_path(directory, run)) for run in ready]
                numbers = _submit(executor, calls)
                report_progress(f"Submitted to Slurm: {', '.join(numbers)}")
                running |= {run.key: (run, number) for run, number in zip(ready, numbers, strict=True)}
                waiting = [run for run in waiting if run.key not in running]
            queue = list_queue()
            for key, (run, number) in list(running.items()):
                file = _result_path(directory, run)
                if file.is_file():
                    del running[key]
                    yield run, {**_read_result(file), "job": number}
                    file.unlink()  # the ledger has the result now
                elif number in queue:
                    gone.discard(number)
                elif number in gone:  # missing for a second time: the result is not just late
                    del running[key]
                    yield run, {"failed": _describe_end(number, directory / f"{number}_0_log.err"), "job": number}
                else:
                    gone.add(number)
            if running:
                time.sleep(POLL)
    except KeyboardInterrupt as error:
        message = f"{len(running)} Slurm jobs keep running: start the study again to wait for them, or scancel them"
        raise StoppedBySignal(message, signal.SIGINT) from error


def _result_path(directory: Path, run: StudyRun) -> Path:
    return (directory / f"{run.key}.json").absolute()


def _read_result(file: Path) -> RunResult:
    """Return the result that a job wrote."""
    try:
        return check_result(read_json(file, "remove it to train its run again"))
    except ValueError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}): remove it to train its run again") from error


def _describe_end(number: str, log: Path) -> str:
    """Explain why a job has no result, by Slurm's message (between asterisks) or the last line of the log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = next((line for line in reversed(lines) if "***" in line), (lines or ["the log is empty"])[-1])
    return f"Slurm job {number} ended without a result ({last}): see {log}"


def _submit(executor: Any, calls: list[tuple[Any, ...]]) -> list[str]:
    """Submit jobs and return their numbers."""
    import submitit

    try:
        # A clean environment, as the study may itself run in a job. The message below has what submitit prints.
        with submitit.helpers.clean_env(), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(SlurmJob(), *arguments) for arguments in calls]
    except RuntimeError as error:  # submitit raises nothing more specific
        said = "; ".join(str(error).replace("sbatch: error: ", "").splitlines())
        raise InputError(
            f"Slurm refuses the jobs ({said}): correct the settings in slurm, or submit fewer at a time with --jobs, "
            "and start the study again"
        ) from error
    return [job.job_id for job in jobs]


def find_queued_jobs(directory: Path) -> dict[str, str]:
    """Return the pending and running jobs of a study by the keys of their runs.

    Args:
        directory: Folder of submitit's files.

    Raises:
        InputError: Slurm does not respond for minutes.
    """
    submitted = {path.name.removesuffix("_submitted.pkl"): path for path in directory.glob("*_submitted.pkl")}
    if not submitted or shutil.which("squeue") is None:
        return {}
    jobs = {}
    for number in list_queue() & submitted.keys():
        # Search the pickle for the name of the result file; unpickling it could run code.
        if key := re.search(rb"([0-9a-f]{64})\.json", submitted[number].read_bytes()):
            jobs[key[1].decode()] = number
    return jobs


def list_queue() -> set[str]:
    """Return the pending and running jobs of this user.

    Raises:
        InputError: Slurm does not respond for minutes.
    """
    for _ in range(60):
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True
        )
        if done.returncode == 0:
            return set(done.stdout.split())
        time.sleep(POLL)
    raise InputError(f"launcher is slurm, but squeue fails ({done.stderr.strip()}): start the study again later")


def make_executor(directory: Path, settings: dict[str, Any]) -> Any:
    """Return the submitit executor that submits the jobs.

    Args:
        directory: Folder of submitit's files.
        settings: Settings of sbatch as submitit names them.

    Raises:
        InputError: Slurm or submitit is missing, or a setting is wrong.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("launcher is slurm, which needs submitit: pip install 'sft-lightning[slurm]'") from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "launcher is slurm, but sbatch or srun is missing here: use a login node, or leave launcher out"
        )
    executor = submitit.SlurmExecutor(directory)
    known = sorted(executor._valid_parameters())
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"slurm has no setting {name!r}{did_you_mean(name, known)}: give {', '.join(known)}")
        if name in _LISTS and not isinstance(value, list):
            raise InputError(f"slurm.{name} is {value!r}: give a list, such as [{value}]")
    full = {"job_name": "sft-study", "time": 240, "cpus_per_task": 1, **settings}
    if full["cpus_per_task"] is not None:  # since Slurm 22.05, srun does not inherit it from sbatch
        full["srun_args"] = [f"--cpus-per-task={full['cpus_per_task']}", *full.get("srun_args", [])]
    try:
        executor.update_parameters(**full)
    except (TypeError, ValueError) as error:
        raise InputError(f"slurm is {settings}, which submitit refuses: {error}; correct it") from error
    return executor
