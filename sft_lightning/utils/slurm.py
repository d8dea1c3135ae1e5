"""What commands that submit Slurm jobs share, through submitit."""

import io
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from sft_lightning.utils.errors import InputError, did_you_mean

POLL = 5.0  # seconds between two queries of the queue
_LISTS = ("setup", "teardown", "srun_args")  # submitit would take each character of a string for a line


class RequeuedJob(ABC):
    """A call that submitit requeues with the same arguments, for it goes on where it was interrupted."""

    @abstractmethod
    def __call__(self, *args: Any) -> None:
        """Do the work of the job and write its result to a file.

        Args:
            args: Arguments of the job.
        """

    def checkpoint(self, *args: Any) -> Any:
        """Return the call that submitit requeues.

        Args:
            args: Arguments of the interrupted call.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args)


def submit(executor: Any, call: RequeuedJob, arguments: list[tuple[Any, ...]], remedy: str) -> list[str]:
    """Submit jobs and return their numbers.

    Args:
        executor: Executor of `make_executor`.
        call: What each job calls.
        arguments: Arguments of each job.
        remedy: What the user can do if Slurm refuses the jobs.

    Raises:
        InputError: Slurm refuses the jobs.
    """
    import submitit

    try:
        # A clean environment, as this process may itself be a job. The message below has what submitit prints.
        with submitit.helpers.clean_env(), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(call, *one) for one in arguments]
    except RuntimeError as error:  # submitit raises nothing more specific
        said = "; ".join(str(error).replace("sbatch: error: ", "").splitlines())
        raise InputError(f"Slurm refuses the jobs ({said}): {remedy}") from error
    return [job.job_id for job in jobs]


def describe_end(directory: Path, number: str) -> str:
    """Explain why a job has no result, by Slurm's message (between asterisks) or the last line of its log.

    Args:
        directory: Folder of submitit's files.
        number: Number of the job.
    """
    log = find_log(directory, number)
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = next((line for line in reversed(lines) if "***" in line), (lines or ["the log is empty"])[-1])
    return f"Slurm job {number} ended without a result ({last}): see {log}"


def find_log(directory: Path, number: str) -> Path:
    """Return the path of what a job writes to its standard error.

    Args:
        directory: Folder of submitit's files.
        number: Number of the job.
    """
    return directory / f"{number}_0_log.err"


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
    raise InputError(f"launcher is slurm, but squeue fails ({done.stderr.strip()}): start the command again later")


def make_executor(directory: Path, settings: dict[str, Any], **defaults: Any) -> Any:
    """Return the submitit executor that submits the jobs.

    Args:
        directory: Folder of submitit's files.
        settings: Settings of sbatch as submitit names them.
        defaults: Settings of the command, which the user's replace.

    Returns:
        The executor of jobs of 240 minutes with one core, if the settings do not say otherwise.

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
    full = {"time": 240, "cpus_per_task": 1, **defaults, **settings}
    if full["cpus_per_task"] is not None:  # since Slurm 22.05, srun does not inherit it from sbatch
        full["srun_args"] = [f"--cpus-per-task={full['cpus_per_task']}", *full.get("srun_args", [])]
    try:
        executor.update_parameters(**full)
    except (TypeError, ValueError) as error:
        raise InputError(f"slurm is {settings}, which submitit refuses: {error}; correct it") from error
    return executor
