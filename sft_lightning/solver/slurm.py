"""`sft-lightning solve --launcher slurm`: the whole call as one Slurm job, through submitit.

This process submits the job, prints the job's progress as its own, and reads the solution at the end. Slurm may requeue
the job at any moment: like every call of `solve`, it goes on with what is done. A call that was stopped while it waited
knows the job from a file, and waits for it again instead of submitting a second one.
"""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_lightning.runs.lock import lock_folder
from sft_lightning.solver.solution import Solution
from sft_lightning.study.runner import prepare_process
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, StoppedBySignal
from sft_lightning.utils.json_files import read_json_object
from sft_lightning.utils.slurm import (
    POLL,
    RequeuedJob,
    describe_end,
    find_log,
    list_queue,
    make_executor,
    submit,
)

_REMEDY = "correct the settings in slurm, and start solve again"


class SolveJob(RequeuedJob):
    """A call of `solve` as a job."""

    def __call__(self, arguments: dict[str, Any], file: Path) -> None:
        """Solve, and write the solution or the reason why it failed.

        Args:
            arguments: Arguments of `solve`.
            file: Path of the result.
        """
        from sft_lightning.solver.solve import solve

        prepare_process(int(os.environ.get("SLURM_CPUS_PER_TASK", count_cores())))
        try:
            solution = asdict(solve(**arguments))
        except InputError as error:
            write_json(file, {"failed": str(error)})
            return
        write_json(file, {"solution": {**solution, "folder": str(solution["folder"]), "run": str(solution["run"])}})


def solve_on_slurm(folder: Path, arguments: dict[str, Any], settings: dict[str, Any]) -> Solution:
    """Submit a call of `solve` as a job, unless it is in the queue, and wait for its solution.

    Args:
        folder: Folder of the solution.
        arguments: Arguments of `solve`.
        settings: Settings of sbatch as submitit names them; `time` is by default twice the minutes and 30 more.

    Raises:
        InputError: Slurm or submitit is missing, a setting is wrong, or the job failed.
        StoppedBySignal: The user stopped waiting.
    """
    directory = folder / "slurm"
    known, file = directory / "job.json", (directory / "solution.json").absolute()
    time_limit = 30 + 2 * int(arguments["minutes"] + 1)
    executor = make_executor(directory, settings, job_name="sft-solve", time=time_limit)
    number = find_job(folder, arguments)
    try:
        if number:
            sys.stderr.write(f"Waiting for Slurm job {number}, which was submitted before\n")
        else:
            with lock_folder(folder, f"solution {folder.name!r}"):  # else the job would wait in vain
                file.unlink(missing_ok=True)
                (number,) = submit(executor, SolveJob(), [(arguments, file)], _REMEDY)
                write_json(known, {"job": number, "arguments": _describe(arguments)})
            sys.stderr.write(f"Submitted to Slurm: {number}\n")
        log, shown, is_missing = find_log(directory, number), 0, False
        while not file.is_file():
            shown = _show_progress(log, shown)
            if number in list_queue():
                is_missing = False
            elif is_missing:  # for a second time: the result is not just late
                raise InputError(describe_end(directory, number))
            else:
                is_missing = True
            time.sleep(POLL)
    except KeyboardInterrupt as error:
        if not number:
            raise StoppedBySignal("SIGINT: no job was submitted", signal.SIGINT) from error
        message = f"Slurm job {number} keeps running: start solve again to wait for it, or scancel {number}"
        raise StoppedBySignal(message, signal.SIGINT) from error
    _show_progress(log, shown)
    result = read_json_object(file, "remove it and start solve again")
    known.unlink(missing_ok=True)
    if "solution" not in result:
        raise InputError(str(result.get("failed")))
    found = result["solution"]
    return Solution(**{**found, "folder": Path(found["folder"]), "run": Path(found["run"])})


def find_job(folder: Path, arguments: dict[str, Any] | None = None) -> str:
    """Return the number of another job that solves in a folder, pending, running or ended unread; empty if none does.

    Args:
        folder: Folder of the solution.
        arguments: Arguments of `solve` that its own must equal; None for any.

    Raises:
        InputError: The job has other arguments.
    """
    known = folder / "slurm" / "job.json"
    if not known.is_file() or shutil.which("squeue") is None:
        return ""
    job = read_json_object(known, "remove it")
    number = str(job.get("job"))
    is_done = (folder / "slurm" / "solution.json").is_file()
    if number == _find_own_number() or (not is_done and number not in list_queue()):
        return ""
    if arguments is not None and job.get("arguments") != _describe(arguments):
        if is_done:
            return ""
        raise InputError(
            f"Slurm job {number} still solves {folder.name!r} with other settings: wait for it, or scancel {number}"
        )
    return number


def _find_own_number() -> str:
    """Return the number of the job that this process is, as `list_queue` has it; empty outside of jobs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def _describe(arguments: dict[str, Any]) -> Any:
    """Return arguments as JSON types, to be compared with those of a file."""
    return json.loads(json.dumps(arguments, default=lambda one: asdict(one)))


def _show_progress(log: Path, shown: int) -> int:
    """Print the lines of progress that a job wrote since, and return how many characters of its log are shown."""
    if not log.is_file():
        return shown
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(shown)
        while (line := file.readline()).endswith("\n"):
            shown = file.tell()
            if line.startswith("["):  # of `solve`; others are those of Slurm and submitit
                sys.stderr.write(line)
    return shown
