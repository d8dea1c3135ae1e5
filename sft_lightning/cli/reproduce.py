"""`sft-lightning repeat RUN`: train a run again, and compare the results bit for bit."""

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
from sft_lightning.training.callbacks.metrics_csv import MetricsCSV
from sft_lightning.utils.errors import InputError, IssuesFound

_LATER = ("test/", "validate/")  # metrics that other commands log into the same file
_AVERAGES = ("train/", "pseudo_labels/")  # averages over the steps since the last line, which a stop tears apart
Curves = dict[tuple[int, str], str]  # logged values by step and metric


class Outcome(NamedTuple):
    """The results of a run.

    Attributes:
        metrics: Logged values of the training.
        weights: Tensors of the last iterate; None without a checkpoint.
        step: Global step of the last iterate; None without a checkpoint.
        is_resumed: Whether the run was stopped and resumed.
        metadata: Metadata that `read_weights` returns for the checkpoint.
    """

    metrics: Curves
    weights: dict[str, Tensor] | None
    step: int | None
    is_resumed: bool
    metadata: dict[str, Any] = {}  # noqa: RUF012 - never changed


class ProvenanceWarning(Callback):
    """A callback that warns before the first step about circumstances that have changed."""

    def __init__(self, then: Provenance) -> None:
        """Keep the record of the original run.

        Args:
            then: Content of its `run.json`.
        """
        self.then = then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the records, now that the new run has written its own."""
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero and folder is not None:
            differ = describe_differences(self.then, RunRecord(Path(folder)).provenance)
            if differ:
                rank_zero_info(f"Warning: changed since the run: {'; '.join(differ)}.")


def repeat(run: str) -> str:
    """Train a run again from its `fit.yaml`, as the next version of its name, and compare metrics and last weights.

    The run is trained from start to end, even if it was stopped and resumed, with the same number of threads. Call this
    in the folder where the run was started, as paths in its config are relative to it.

    Args:
        run: Folder of a run, or a file in it.

    Returns:
        Sentence that says that both are the same.

    Raises:
        InputError: The path does not lead to a run, or the run is still being trained.
        IssuesFound: The results differ. The message names the first difference and what has changed.
    """
    folder = find_run_folder(run)
    if is_training(folder):
        raise InputError(f"run {run!r} is still being trained and has no result to compare with: wait for its end")
    then, first = RunRecord(folder).provenance, read_outcome(folder)
    if then.get("seed") is False:
        rank_zero_info("Warning: the run had no seed (seed_everything: false), so the result will differ.")
    if first.is_resumed:
        rank_zero_info("The run was stopped and resumed; it is repeated in one piece, with its first config.")
    threads = torch.get_num_threads()
    torch.set_num_threads(then.get("threads", threads))  # the result of a sum depends on it
    try:
        trainer = _train_again(folder, then, first.metadata)
    finally:
        torch.set_num_threads(threads)
        destroy_process_group()
    if not trainer.is_global_zero:
        return ""
    again = Path(trainer.log_dir or "")
    is_same, comparison = compare_runs(first, read_outcome(again))
    where = f"\n  the run    {folder}\n  once more  {again}"
    if is_same:
        return f"The same bit for bit: {comparison}.{where}"
    differ = describe_differences(then, RunRecord(again).provenance)
    why = f"changed since the run: {'; '.join(differ)}" if differ else "the recorded circumstances are the same"
    raise IssuesFound(f"Not the same: {comparison}; {why}.{where}")


def _train_again(folder: Path, then: Provenance, metadata: dict[str, Any]) -> Trainer:
    class Repeating(SFTCLI):
        """A `fit` that warns first about circumstances that have changed."""

        def before_instantiate_classes(self) -> None:
            """Number the classes as in the original run, whatever their order in the source now."""
            super().before_instantiate_classes()
            set_checkpoint_classes(self.config[self.config.subcommand], metadata, folder / "checkpoints" / "last.ckpt")

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
            return super()._instantiate_trainer(config, [*callbacks, ProvenanceWarning(then)])

    return command(["fit", "--config", str(folder / "fit.yaml")], Repeating).trainer


def read_outcome(run: Path) -> Outcome:
    """Read the results of a run.

    Args:
        run: Folder of the run.

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
        raise InputError(f"{str(path)!r} is damaged, and cannot be compared: remove it") from error
    weights, metadata = read_weights(last) if last.is_file() else (None, {})
    return Outcome(metrics, weights, metadata.get("global_step"), (run / "fit-resumed.yaml").is_file(), metadata)


def compare_runs(first: Outcome, second: Outcome) -> tuple[bool, str]:
    """Compare the results of two runs.

    Args:
        first: Results of the original run.
        second: Results of the repetition.

    Returns:
        Whether both are the same bit for bit, and what was compared or differs first.
    """
    then, now = dict(first.metrics), dict(second.metrics)
    ends = first.step, second.step
    remarks = []
    if None not in ends and ends[0] != ends[1]:
        remarks.append(f"the run ended at step {ends[0]}, the repetition at step {ends[1]}")
        end = min(step for step in ends if step is not None)  # steps in the log count from 0
        then, now = ({place: value for place, value in one.items() if place[0] < end} for one in (then, now))
    if first.is_resumed:
        remarks.append("averages over steps (train/, pseudo_labels/) are left out, as the stop split some of them")
        then, now = (
            {place: value for place, value in one.items() if not place[1].startswith(_AVERAGES)} for one in (then, now)
        )
    same_metrics, of_metrics = _compare_metrics(then, now)
    same_weights, of_weights = _compare_weights(first, second)
    return same_metrics and same_weights, "; ".join([of_metrics, of_weights, *remarks])


def _compare_metrics(then: Curves, now: Curves) -> tuple[bool, str]:
    if not then:
        return True, f"{MetricsCSV.FILE} has no values to compare"
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
        return True, "last.ckpt does not exist and was not compared"
    if first.step != second.step:
        return False, "weights are not compared"
    differ = [name for name in {**then, **now} if not _is_bitwise_equal(then.get(name), now.get(name))]
    if not differ:
        return True, f"{len(then)} tensors of the last iterate, of step {first.step}, are the same"
    return False, f"{len(differ)} of {len(then)} tensors of the last iterate differ, first {differ[0]}"


def _is_bitwise_equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two tensors have the same bits: NaN equals NaN, and 0 differs from -0."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits_a, bits_b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(bits_a, bits_b)
