"""`sft-lightning study --launcher slurm`: train the runs of a study as array jobs, through submitit.

This process submits the runs that are ready, waits for their results, and alone writes `study.json`. Each job writes
its result to a file, beside which submitit keeps the arguments of the job. A study that was stopped at any moment
therefore knows which runs the jobs in the queue train, and waits for them instead of submitting them twice.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft_lightning.cli.lightning_cli import destroy_process_group
from sft_lightning.study.plan import StudyRun
from sft_lightning.study.runner import Ledger, RunResult, check_result, find_start_folder, prepare_process, try_perform
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, StoppedBySignal
from sft_lightning.utils.json_files import read_json
from sft_lightning.utils.slurm import POLL, RequeuedJob, describe_end, list_queue, make_executor, submit

_REMEDY = "correct the settings in slurm, or submit fewer at a time with --jobs, and start the study again"


class SlurmJob(RequeuedJob):
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
    executor = make_executor(directory, settings, job_name="sft-study")
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
                numbers = submit(executor, SlurmJob(), calls, _REMEDY)
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
                    yield run, {"failed": describe_end(directory, number), "job": number}
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
