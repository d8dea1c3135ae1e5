"""`sft-lightning study --launcher slurm`: the trainings of a study as array jobs, through submitit.

This process submits what is ready, waits for the results, and is the only one that writes `study.json`. Jobs write
their results as files of their own, and their numbers stand in `study.json`, so that a study that was stopped and is
started again waits for the jobs that are still there instead of submitting them twice.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_lightning.cpu import cores
from sft_lightning.errors import InputError, near
from sft_lightning.files import write_json
from sft_lightning.study.recipe import Run
from sft_lightning.study.runner import Ledger, Result, beginning, outcome, prepare

POLL = 5.0  # seconds between two looks at the queue


class Work:
    """One training as a job; at its time limit, or before it makes way for another job, it is requeued and goes on."""

    def __call__(self, one: Run, start: str | None, folder: str, file: Path) -> None:
        """Trains and writes the result.

        Args:
            one: The run.
            start: Folder of the run whose weights it starts from, or None.
            folder: Below `lightning_logs`.
            file: Gets the result.
        """
        prepare(int(os.environ.get("SLURM_CPUS_PER_TASK", cores())))
        write_json(file, outcome(one, start, folder))

    def checkpoint(self, *args: Any) -> Any:
        """What submitit puts into the queue again.

        Args:
            args: Of the call.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args)


def submitted(
    waiting: list[Run], ledger: Ledger, folder: str, jobs: int, settings: dict[str, Any]
) -> Iterator[tuple[Run, Result]]:
    """Each run with its result, as soon as it has one.

    Args:
        waiting: What is to be trained.
        ledger: With the results of what runs start from, and the numbers of jobs.
        folder: Below `lightning_logs`.
        jobs: So many run at the same time; 1 for as many as the cluster lets.
        settings: Of sbatch, as submitit names them.

    Raises:
        InputError: There is no Slurm or no submitit, or a setting is wrong.
    """
    place = ledger.path.parent / "slurm"
    jobs_of = executor(place, settings, jobs)
    waiting, running = list(waiting), dict[str, tuple[Run, str]]()
    known = [one for one in waiting if "job" in ledger.results.get(one.key, {})]
    queue = in_queue() if known else set()
    for one in known:
        job = ledger.results[one.key]["job"]
        if job in queue or _file(place, one).is_file():
            waiting.remove(one)
            running[one.key] = one, job
    gone: set[str] = set()
    while waiting or running:
        open_keys = {one.key for one in [*waiting, *(one for one, _ in running.values())]}
        ready = [one for one in waiting if one.start not in open_keys]
        for one in [one for one in ready if beginning(one, ledger) == ""]:
            ready.remove(one)
            waiting.remove(one)
            yield one, outcome(one, "", folder)
        if ready:
            for one in ready:
                waiting.remove(one)
                _file(place, one).unlink(missing_ok=True)  # of an attempt that failed
            with jobs_of.batch():
                made = [jobs_of.submit(Work(), o, beginning(o, ledger), folder, _file(place, o)) for o in ready]
            for one, job in zip(ready, made, strict=True):
                ledger.add(one.key, {"job": job.job_id, "start": one.start})
                running[one.key] = one, job.job_id
        queue = in_queue()
        for key, (one, job) in list(running.items()):
            if _file(place, one).is_file():
                del running[key]
                yield one, json.loads(_file(place, one).read_text(encoding="utf-8"))
            elif job in queue:
                gone.discard(job)
            elif job in gone:  # a second time: its result is not only late
                del running[key]
                yield (
                    one,
                    {"failed": f"Slurm job {job} ended without a result: see {place / f'{job}_0_log.err'}"},
                )
            else:
                gone.add(job)
        if running:
            time.sleep(POLL)


def _file(place: Path, one: Run) -> Path:
    return (place / f"{one.key}.json").absolute()


def in_queue() -> set[str]:
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


def executor(place: Path, settings: dict[str, Any], jobs: int) -> Any:
    """What submits.

    Args:
        place: For the files of the jobs.
        settings: Of sbatch, as submitit names them.
        jobs: At the same time; 1 for no limit.

    Raises:
        InputError: There is no Slurm or no submitit, or a setting is wrong.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("launcher is slurm, which needs submitit: pip install 'sft-lightning[slurm]'") from error
    if shutil.which("sbatch") is None:
        raise InputError("launcher is slurm, but there is no sbatch here: use a login node, or leave launcher out")
    made = submitit.SlurmExecutor(place)
    known = sorted(made._valid_parameters())
    for name in settings:
        if name not in known:
            raise InputError(f"slurm has no setting {name!r}{near(name, known)}: give {', '.join(known)}")
    limit = {"array_parallelism": jobs} if jobs > 1 else {}
    made.update_parameters(**{"job_name": "sft-study", "time": 240, "cpus_per_task": 1, **limit, **settings})
    return made
