"""`sft-lightning solve`: from a source with few labels to the best model, a verdict that holds, and the next labels."""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sft_lightning.data.vision.images import Resize
from sft_lightning.runs.lock import lock_folder
from sft_lightning.runs.paths import LOGS, check_run_name
from sft_lightning.solver.find_starts import NONE
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.slurm import find_job, solve_on_slurm
from sft_lightning.solver.solution import Solution
from sft_lightning.solver.solvers import BoxSolver, MaskSolver, Solver
from sft_lightning.transfer.candidates import Candidate, check_candidate, resolve_candidates
from sft_lightning.utils.errors import InputError, StoppedBySignal, check_min, check_positive


def solve(
    source: str,
    minutes: float = 30.0,
    name: str | None = None,
    num_labels: int | None = None,
    candidates: list[str | Candidate] | Candidate | str | None = None,
    labels: str | None = None,
    label_separator: str | None = None,
    label_columns: str | list[str] | None = None,
    image_size: int | None = None,
    resize: Resize = "crop",
    value_range: tuple[float, float] | None = None,
    class_names: list[str] | None = None,
    class_colors: dict[str, list[int]] | None = None,
    seed: int = 0,
    root: str = "data",
    download: bool = False,
    launcher: Literal["local", "slurm"] = "local",
    slurm: dict[str, Any] | None = None,
) -> Solution:
    """Compare recipes on the labels, train the best one on all of them, and say what to label next.

    Recipes are compared by cross-fitting: each label is predicted by classifiers that have not seen its fold. Call it
    again with the same name to go on after a stop, after labeling, or with more minutes; what is known is not computed
    again.

    Args:
        source: Source of the examples, as `data.init_args.source` takes it: a folder, a table, or the name of a data
            set.
        minutes: Time for the whole call, about: the cheapest recipes and the delivery of the best are always made.
        name: Name of the solution, whose folder is `lightning_logs/solve/NAME`; null for that of the source.
        num_labels: Number of labels to use, to see what fewer would give; null for all.
        candidates: Start or starts to compare: names of backbones with published weights, weights files or runs, or a
            mapping of backbone, weights and image_size; `none` for none, null for those at hand: published weights
            that were fetched before, weights files in the current folder that say which network they are of, and runs
            that have learned without labels.
        labels: A CSV of further labels with the columns id,label, as `sft-lightning label` writes it.
        label_separator: Separator of the classes of an example, as in `dog;outdoors`; null where each has one.
        label_columns: Columns of 0 and 1 of a table, each a class, or a pattern such as `tag_*`; null for one column of
            labels.
        image_size: Side of the images in pixels; null for that of the source, at most 64.
        resize: Method that makes image files square: `crop` keeps the central square, `pad` adds background to the
            shorter side, and `squash` changes the ratio of its sides.
        value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null for the scale that
            `data.init_args.value_range` describes.
        class_names: Names of the classes in the order of their numbers; null for those of the source.
        class_colors: Color of each class in masks that hold colors, as in {road: [128, 64, 128]}.
        seed: Seed of the folds and of the labels, if fewer than all are used.
        root: Folder that holds torchvision data sets.
        download: Whether to fetch a torchvision data set that is not in `root`, and a published start where none is at
            hand.
        launcher: Where to compute: `local` for this process, or `slurm` for a job whose progress is printed here (with
            the extra `slurm`). The job has this folder as its own, and is requeued where Slurm interrupts it.
        slurm: Settings of sbatch for the job, as submitit names them: partition, time (minutes), cpus_per_task,
            gpus_per_node, mem, account, ...

    Returns:
        The solution with its model, verdict and files; as text, its summary.

    Raises:
        InputError: The source cannot be read or has labels of fewer than two classes, or a candidate cannot be loaded.
        StoppedBySignal: A signal stopped the work; the same call goes on.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("launcher", "slurm")}
    begin = time.monotonic()
    check_positive(minutes=minutes)
    check_min(2, num_labels=num_labels)
    named_after = Path(source).stem if Path(source).is_file() else Path(source).name
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", named_after).strip("._-") or "data"
    check_run_name("name", name)
    named = _resolve(candidates)
    folder = Path(LOGS) / "solve" / name
    if launcher == "slurm":
        return solve_on_slurm(folder, {**arguments, "name": name}, slurm or {})
    if slurm:
        raise InputError(f"slurm is {slurm}, but launcher is local: set launcher to slurm, or leave slurm out")
    if job := find_job(folder):
        raise InputError(
            f"Slurm job {job} solves {name!r}: add --launcher slurm to wait for it, or end it first (scancel {job})"
        )
    with lock_folder(folder, f"solution {name!r}"), _stop_on_sigterm():
        try:
            sys.stderr.write(f"[   0 s] Looking at {source}\n")  # many files take minutes
            opened = read_source(
                source, folder, num_labels, image_size, seed, root, labels, download,
                resize=None if resize == "crop" else resize, value_range=value_range, class_names=class_names,
                label_separator=label_separator, label_columns=label_columns,
                class_colors=class_colors,
            )  # fmt: skip
            make = {"mask": MaskSolver, "boxes": BoxSolver}.get(opened.data.target, Solver)
            return make(opened, minutes, name, folder, begin).run(named, download)
        except (StoppedBySignal, KeyboardInterrupt) as error:
            number = error.signal if isinstance(error, StoppedBySignal) else signal.SIGINT
            stopped = signal.Signals(number).name
            raise StoppedBySignal(f"{stopped}: start solve again to go on; what is done is kept", number) from error


def _resolve(candidates: Sequence[str | Candidate] | Candidate | str | None) -> list[Candidate] | None:
    """Return the starts that the user named, all of which exist; None to search for some."""
    if candidates is None:
        return None
    given = [candidates] if isinstance(candidates, str | Candidate) else candidates
    named = [one for each in given if each != NONE for one in resolve_candidates(each)]
    for one in named:
        check_candidate(one, [NONE])
    return named


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does, in the main thread, where alone handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise StoppedBySignal(signal.Signals(number).name, number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
