"""`sft-lightning repeat RUN`: trains a run again and says whether it comes to the same, bit for bit."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.cli.lightning_cli import SFTCLI, destroy_process_group, run as command
from sft_lightning.cli.predict_config import set_checkpoint_classes
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.lineage import find_run_folder
from sft_lightning.runs.lock import is_training
from sft_lightning.runs.provenance import describe_differences
from sft_lightning.runs.record import Provenance, RunRecord
from sft_lightning.training.callbacks.csv_log import MetricsCSV
from sft_lightning.utils.errors import InputError, IssuesFound

_LATER = ("test/", "validate/")  # logged by other commands into the same file
_AVERAGES = ("train/", "pseudo_labels/")  # of the steps since the last line: a stop tears them apart
Curves = dict[tuple[int, str], str]  # what is written, by step and metric


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        metrics: Of the training, as they are written.
        weights: Of the last iterate; None without a checkpoint.
        step: Of the same.
        resumed: Whether it was stopped on the way and went on.
        about: What `read_weights` tells of its checkpoint.
    """

    metrics: Curves
    weights: dict[str, Tensor] | None
    step: int | None
    resumed: bool
    about: dict[str, Any] = {}  # noqa: RUF012 - never changed


class ProvenanceWarning(Callback):
    """Says before the first step what is not as it was."""

    def __init__(self, then: Provenance) -> None:
        """Takes the record of the run that is repeated.

        Args:
            then: From its `run.json`.
        """
        self.then = then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The new run has written its own record by now."""
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero and folder is not None:
            differ = describe_differences(self.then, RunRecord(Path(folder)).provenance)
            if differ:
                rank_zero_info(f"Warning: not as it was: {'; '.join(differ)}.")


def repeat(run: str) -> str:
    """Trains a run again from its `fit.yaml`, as the next version of its name, and compares metrics and last weights.

    It is trained from its start to its end, also if it was stopped and went on, with the number of threads that it had.
    Call it in the folder where the run was started: paths in its config begin there.

    Args:
        run: Folder of a run, or a file in it.

    Returns:
        That both are the same.

    Raises:
        InputError: It is no run.
        Found: They are not: what differs first, and which circumstances.
    """
    folder = find_run_folder(run)
    if is_training(folder):
        raise InputError(f"run {run!r} is still being trained, so there is no result to compare with: wait for its end")
    then, first = RunRecord(folder).provenance, read_outcome(folder)
    if then.get("seed") is False:
        rank_zero_info("Warning: the run had no seed (seed_everything: false): it will not come to the same.")
    if first.resumed:
        rank_zero_info("The run was stopped and went on; it is repeated as one, from its start, by its first config.")
    threads = torch.get_num_threads()
    torch.set_num_threads(then.get("threads", threads))  # sums depend on it
    try:
        trainer = _train_again(folder, then, first.about)
    finally:
        torch.set_num_threads(threads)
        destroy_process_group()
    if not trainer.is_global_zero:
        return ""
    again = Path(trainer.log_dir or "")
    same, told = compare_runs(first, read_outcome(again))
    where = f"\n  the run    {folder}\n  once more  {again}"
    if same:
        return f"The same bit for bit: {told}.{where}"
    differ = describe_differences(then, RunRecord(again).provenance)
    why = f"not as it was: {'; '.join(differ)}" if differ else "all that is recorded of the circumstances is as it was"
    raise IssuesFound(f"Not the same: {told}; {why}.{where}")


def _train_again(folder: Path, then: Provenance, about: dict[str, Any]) -> Trainer:
    class Repeating(SFTCLI):
        """`fit` that says first what is not as it was."""

        def before_instantiate_classes(self) -> None:
            """Numbers the classes as they were, in whatever order the source has them now."""
            super().before_instantiate_classes()
            set_checkpoint_classes(self.config[self.config.subcommand], about, folder / "checkpoints" / "last.ckpt")

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
            return super()._instantiate_trainer(config, [*callbacks, ProvenanceWarning(then)])

    return command(["fit", "--config", str(folder / "fit.yaml")], Repeating).trainer


def read_outcome(run: Path) -> Outcome:
    """What a run came to.

    Args:
        run: Its folder.

    Raises:
        InputError: Its metrics or its last checkpoint are damaged.
    """
    path, last = run / MetricsCSV.FILE, run / "checkpoints" / "last.ckpt"
    metrics: Curves = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row["metric"].startswith(_LATER):
                    metrics[int(row["step"]), row["metric"]] = row["value"]
    except FileNotFoundError:  # `logger: false`
        pass
    except (KeyError, AttributeError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{str(path)!r} is damaged, so there is nothing to compare with: remove it") from error
    weights, about = read_weights(last) if last.is_file() else (None, {})
    return Outcome(metrics, weights, about.get("global_step"), (run / "fit-resumed.yaml").is_file(), about)


def compare_runs(first: Outcome, second: Outcome) -> tuple[bool, str]:
    """Whether two runs came to the same, and what was compared or what differs first.

    Args:
        first: What is repeated.
        second: The repetition.
    """
    then, now = dict(first.metrics), dict(second.metrics)
    ends = first.step, second.step
    told = []
    if None not in ends and ends[0] != ends[1]:
        told.append(f"the run ended at step {ends[0]}, the repetition at step {ends[1]}")
        end = min(step for step in ends if step is not None)  # steps in the log count from 0
        then, now = ({place: value for place, value in one.items() if place[0] < end} for one in (then, now))
    if first.resumed:
        told.append("averages over steps (train/, pseudo_labels/) are left out, as the stop tore some of them apart")
        then, now = (
            {place: value for place, value in one.items() if not place[1].startswith(_AVERAGES)} for one in (then, now)
        )
    same_metrics, of_metrics = _compare_metrics(then, now)
    same_weights, of_weights = _compare_weights(first, second)
    return same_metrics and same_weights, "; ".join([of_metrics, of_weights, *told])


def _compare_metrics(then: Curves, now: Curves) -> tuple[bool, str]:
    if not then:
        return True, f"there are no values in {MetricsCSV.FILE} to compare"
    places = {**then, **now}
    differ = [place for place in places if then.get(place) != now.get(place)]
    if not differ:
        return True, f"{len(then):,} values of {len({metric for _, metric in then})} metrics are the same"
    step, metric = first = min(differ, key=lambda place: place[0])
    values = f"{then.get(first, 'missing')} then, {now.get(first, 'missing')} now"
    return False, f"{metric} at step {step} is {values} ({len(differ):,} of {len(places):,} values differ)"


def _compare_weights(first: Outcome, second: Outcome) -> tuple[bool, str]:
    then, now = first.weights, second.weights
    if then is None or now is None:
        return True, "there is no last.ckpt to compare"
    if first.step != second.step:
        return False, "weights are not compared"
    differ = [name for name in {**then, **now} if not _is_bitwise_equal(then.get(name), now.get(name))]
    if not differ:
        return True, f"{len(then)} tensors of the last iterate, of step {first.step}, are the same"
    return False, f"{len(differ)} of {len(then)} tensors of the last iterate differ, first {differ[0]}"


def _is_bitwise_equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit for bit: NaN is NaN, and 0 is not -0."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits_a, bits_b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(bits_a, bits_b)
