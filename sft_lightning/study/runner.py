"""Train the runs of a study: keep finished runs, resume interrupted ones, and continue after a failed one."""

import gc
import math
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.cli.logging import silence_logs, silence_third_party
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.data.digests import combine_digests
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.runs.paths import LOGS, is_below_logs
from sft_lightning.runs.record import RunRecord
from sft_lightning.study.baselines import (
    STARTS,
    fit_label_spreading,
    fit_logistic_regression,
    fit_naive_bayes,
    fit_smoothed_regression,
)
from sft_lightning.study.folders import assign_folders
from sft_lightning.study.folds import score_examples
from sft_lightning.study.mask_baselines import fit_common_class, fit_pixel_regression
from sft_lightning.study.method_names import BASELINES
from sft_lightning.study.plan import StudyRun
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.make_task import make_task
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from sft_lightning.transfer.vectors import choose_device
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, StoppedBySignal, describe_failure
from sft_lightning.utils.json_files import read_json

RunResult = dict[str, Any]
_NUMERIC = ("seconds", "test_last", "test_best", "val_best", "steps", "tested")
_TEXT = ("folder", "failed", "network", "start", "job", "test_set", "title", "target", "metric", "metric_title")
Launch = Callable[[list[StudyRun], "Ledger", str, int | None], Iterator[tuple[StudyRun, RunResult]]]


class Ledger:
    """`study.json`: the result of each run by its key, written atomically after each run."""

    def __init__(self, path: Path) -> None:
        """Read the results of earlier calls.

        Args:
            path: Path of `study.json`, which may not exist yet.

        Raises:
            InputError: The file cannot be read.
        """
        self.path = path
        self.results: dict[str, RunResult] = {}
        if path.is_file():
            try:
                results = dict(read_json(path, "remove it to train all runs again"))
                self.results = {key: check_result(result) for key, result in results.items()}
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{str(path)!r} cannot be read ({error}): remove it to train all runs again"
                ) from error

    def add(self, key: str, result: RunResult) -> None:
        """Save a result.

        Args:
            key: Key of the run.
            result: Result of `perform`, or `failed` with the reason.
        """
        self.results[key] = result
        write_json(self.path, self.results)

    def is_done(self, key: str, needs_test: bool = False) -> bool:
        """Return whether a run has finished.

        Args:
            key: Key of the run.
            needs_test: Whether it must have been tested, too: it may have been an earlier stage of a former method.
        """
        result = self.results.get(key, {})
        return "folder" in result and (not needs_test or "test_last" in result)


def check_result(result: Any) -> RunResult:
    """Return a result that was read from a file, after checking its types.

    Args:
        result: Content of the file.

    Raises:
        ValueError: It cannot be a result of `try_perform`.
    """
    if not isinstance(result, dict):
        raise ValueError(f"a result is {result!r:.40}, not a mapping")
    numbers = {name: result[name] for name in _NUMERIC if name in result}
    texts = {name: result[name] for name in _TEXT if result.get(name) is not None}
    shares = [result.get(kind, {}) for kind in BASELINES]
    if not all(isinstance(by_input, dict) for by_input in shares):
        raise ValueError(f"{' or '.join(BASELINES)} is not a mapping")
    for name, value in [*numbers.items(), *(item for by_input in shares for item in by_input.items())]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r:.40}, not a number")
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r:.40}, not text")
    correct = result.get("correct", {})
    if not isinstance(correct, dict) or not all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in correct.values()
    ):
        raise ValueError("correct is not a mapping to numbers from 0 to 1")
    if not isinstance(result.get("inputs") or {}, dict):
        raise ValueError("inputs is not a mapping")
    if "folder" in result and not is_below_logs(result["folder"].removeprefix(f"{LOGS}/")):
        raise ValueError(f"folder is {result['folder']!r:.80}, which is not below {LOGS}")
    return result


def train(
    runs: Sequence[StudyRun],
    ledger: Ledger,
    folder: str,
    jobs: int | None,
    report_progress: Callable[[str], None],
    launch: Launch | None = None,
) -> None:
    """Train all runs that are not done, each after the run that it starts from.

    Args:
        runs: Runs from `plan`.
        ledger: Results, to which new ones are added.
        folder: Folder of the study below `lightning_logs`.
        jobs: Number of runs at the same time; None for the default of `launch`.
        report_progress: Function that gets a line after each run.
        launch: Function that trains runs in place of `train_locally`.

    Raises:
        StoppedBySignal: A signal stopped the study.
    """
    waiting = assign_folders(list_pending(runs, ledger), ledger.path.parent)
    total, begin = len(waiting), time.monotonic()
    try:
        for finished, (run, result) in enumerate((launch or train_locally)(waiting, ledger, folder, jobs), 1):
            ledger.add(run.key, {**result, "start": run.start, "inputs": run.inputs, "title": run.title})
            minutes = (time.monotonic() - begin) / finished * (total - finished) / 60
            outcome = f"failed: {result['failed']}" if "failed" in result else _format_result(result)
            report_progress(
                f"{finished}/{total}  {run.title}: {outcome}; {total - finished} left, about {minutes:.0f} min"
            )
    except (StoppedBySignal, KeyboardInterrupt) as error:
        if launch is not None:
            raise
        number = error.signal if isinstance(error, StoppedBySignal) else signal.SIGINT
        name = signal.Signals(number).name
        raise StoppedBySignal(f"{name}: start the study again to continue", number) from error


def list_pending(runs: Sequence[StudyRun], ledger: Ledger) -> list[StudyRun]:
    """Return the runs without a result, each once even if methods share it.

    Args:
        runs: Runs from `plan`.
        ledger: Results of the study.
    """
    unique: dict[str, StudyRun] = {}
    for run in runs:
        unique.setdefault(run.key, run)
    for run in runs:  # a run that is the last stage of one method is tested, even if it is an earlier one of another
        if run.is_final:
            unique[run.key] = run
    return [run for run in unique.values() if not ledger.is_done(run.key, run.is_final)]


def _format_result(result: RunResult) -> str:
    title = result.get("metric_title", "accuracy")
    return f"test {title} {result['test_last']:.4f}" if "test_last" in result else f"{result['seconds']:.0f} s"


def train_locally(
    waiting: list[StudyRun], ledger: Ledger, folder: str, jobs: int | None
) -> Iterator[tuple[StudyRun, RunResult]]:
    """Train runs on this machine and yield each with its result as soon as it has one.

    Args:
        waiting: Runs to train.
        ledger: Results of the runs that these start from.
        folder: Folder of the study below `lightning_logs`.
        jobs: Number of processes; 1 or None to train in this one.
    """
    waiting = list(waiting)
    if jobs is None or jobs == 1:
        for run in waiting:
            yield run, try_perform(run, find_start_folder(run, ledger), folder)
        return
    # One pool per process, so that a process that is killed does not break the others.
    pools = [_make_pool(jobs) for _ in range(jobs)]
    running: dict[Future[RunResult], tuple[StudyRun, int]] = {}
    try:
        while waiting or running:
            open_keys = {run.key for run in [*waiting, *(run for run, _ in running.values())]}
            ready = [run for run in waiting if run.start not in open_keys]
            idle = {*range(jobs)} - {k for _, k in running.values()}
            for run, k in zip(ready, sorted(idle), strict=False):
                waiting.remove(run)
                running[pools[k].submit(try_perform, run, find_start_folder(run, ledger), folder)] = run, k
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, k = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = {"failed": "its process was killed, perhaps because memory ran out: give fewer --jobs"}
                    pools[k].shutdown()
                    pools[k] = _make_pool(jobs)
                yield run, result
    finally:
        for pool in pools:
            pool.shutdown()


def _make_pool(jobs: int) -> ProcessPoolExecutor:
    threads = max(1, count_cores() // jobs)
    # Fork from a process that has imported everything but initialized no GPU; Windows cannot fork.
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(1, context, prepare_process, (threads,))


def prepare_process(threads: int) -> None:
    """Set up a process that trains runs.

    Args:
        threads: Number of threads of the process.
    """
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    """End this process when the study is killed: a restarted study would train the same run in the same folder."""
    if parent is not None:
        parent.join()
        os._exit(1)


def find_start_folder(run: StudyRun, ledger: Ledger) -> str | None:
    """Return the folder of the run that a run starts from or learns from, None without one, or "" if that run failed.

    Args:
        run: Run that is going to be trained.
        ledger: Results of the study.
    """
    return None if run.start is None else ledger.results.get(run.start, {}).get("folder", "")


def try_perform(run: StudyRun, start: str | None, folder: str) -> RunResult:
    """Return the result of `perform`, or `failed` with the reason.

    Args:
        run: Run to train.
        start: Folder from `find_start_folder`.
        folder: Folder of the study below `lightning_logs`.
    """
    if start == "":
        return {"failed": "the stage that it starts from failed"}
    try:
        return perform(run, start, folder)
    except Exception as error:
        return {"failed": describe_failure(error)}
    finally:
        gc.collect()  # trainer and module refer to each other, and the next run may need their memory


def perform(run: StudyRun, start: str | None, folder: str) -> RunResult:
    """Train a run, resume it if an earlier attempt stopped, and test it if it is the last of its method.

    Args:
        run: Run to train.
        start: Folder of the run whose weights it starts from or that teaches it, or None.
        folder: Folder of the study below `lightning_logs`.

    Returns:
        `folder` and `seconds`. For a final run also `test_last` (accuracy of the last iterate), `test_best` and
        `val_best` (accuracies of the checkpoint that the validation split chose, if there is one), `network`, `steps`,
        `tested` (number of test examples), `test_set` (digest of their names and content), the keys of
        `BASELINES` (test accuracies of each baseline on the same split by its input), and with
        folds `correct` (whether the last iterate has each example of the fold right, by its name). Where examples have
        several classes or masks, `target` says so, and `metric` and `metric_title` what stands in place of the
        accuracy: the mean average precision or the mean intersection over union, with folds that of each example.
    """
    begin = time.monotonic()
    name = f"{folder}/{run.folder or run.label}"
    argv = [*run.argv, f"--run_name={name}", "--trainer.enable_progress_bar=false"]
    if start is not None:
        argv.append(f"--model.init_args.{'weights' if run.stage.teacher is None else 'teacher'}={start}")
    with preserve_process(), silence_logs():
        silence_third_party()
        cli = command(["fit", *argv, *_resume_argv(Path(LOGS) / name)])
        result: RunResult = {"folder": str(cli.trainer.log_dir), "seconds": round(time.monotonic() - begin, 3)}
        if run.is_final:
            result.update(_test(cli, Path(result["folder"]), has_fold=run.fold is not None))
    return result


def _list_correct(tested: SFTCLI) -> dict[str, float]:
    """Return how well a network classifies each test example, 0 to 1, by the example's name."""
    data = tested.datamodule
    scores = score_examples(tested.model, data, make_task(data.target, data.num_classes), "test")
    return {name: round(score, 6) for name, score in zip(data.splits["test"].ids, scores.tolist(), strict=True)}


def _resume_argv(runs: Path) -> list[str]:
    """Return the arguments that make `fit` resume the newest attempt, or none if there is no checkpoint."""
    checkpoints = list(runs.glob("version_*/checkpoints/last.ckpt"))
    if not checkpoints:
        return []
    return ["--ckpt_path", str(max(checkpoints, key=lambda path: path.stat().st_mtime).parents[1])]


def _test(cli: SFTCLI, folder: Path, has_fold: bool) -> RunResult:
    data, model, trainer = cli.datamodule, cli.model, cli.trainer

    def evaluate(checkpoint: Path) -> SFTCLI:
        return command(["test", "--ckpt_path", str(checkpoint), "--trainer.enable_progress_bar=false"])

    task = getattr(model, "task", None)
    name, title = task.metric if isinstance(task, Task) else getattr(model, "compared_by", ("accuracy", "accuracy"))

    def measure(tested: SFTCLI) -> float:
        return round(float(tested.trainer.callback_metrics[f"test/{name}"]), 6)

    last = evaluate(folder / "checkpoints" / "last.ckpt")
    result: RunResult = {"test_last": measure(last), "steps": trainer.global_step}
    if has_fold:
        result["correct"] = _list_correct(last)
    if isinstance(task, Task) and name != "accuracy":
        if has_fold:  # a metric of examples, which can be compared one by one and pooled over folds
            name, title = task.example_metric
            result["test_last"] = round(statistics.fmean(result["correct"].values()), 6)
        result |= {"target": task.target, "metric": name, "metric_title": title}
    elif name != "accuracy":
        result |= {"target": data.target, "metric": name, "metric_title": title}
    saved = trainer.checkpoint_callback
    if isinstance(saved, RunCheckpoint) and saved.best_model_path and saved.best_model_score is not None:
        result["test_best"] = measure(evaluate(Path(saved.best_model_path)))
        if math.isfinite(score := float(saved.best_model_score)):
            result["val_best"] = round(score, 4)
    result["network"] = model.backbone.name
    result["tested"] = len(data.splits["test"])
    if isinstance(data, FewLabelDataModule):
        test = data.splits["test"]
        result["test_set"] = combine_digests(zip(test.ids, test.part.storage.contents(test.indices), strict=True))
        result.update(_fit_baselines(cli, folder, has_fold))
    return result


def _fit_baselines(cli: SFTCLI, folder: Path, has_fold: bool) -> dict[str, dict[str, float]]:
    """Return the accuracy of each baseline on the inputs, and on the features of the starting weights if any."""
    data = cli.datamodule
    if data.target == "boxes":  # which none of them gives
        return {}
    weights = RunRecord(folder).chain[-1].get("weights", "none")
    backbones: dict[str, Encoder | None] = {data.views.inputs_name: None}
    if weights != "none":
        backbones[STARTS] = build_encoder(cli.model.backbone.name, data.input_spec, weights)[0].to(choose_device())
    accuracies: dict[str, dict[str, float]] = {kind: {} for kind in BASELINES}
    if data.target == "mask":
        accuracies["common"][data.views.inputs_name] = fit_common_class(data, has_fold)
        for name, backbone in backbones.items():
            with suppress(InputError):  # a network without maps, or masks of a single class
                accuracies["logistic"][name] = fit_pixel_regression(data, backbone, has_fold)
        return accuracies
    for name, backbone in backbones.items():
        with suppress(InputError):  # too large for memory; the study continues without it
            accuracies["logistic"][name] = fit_logistic_regression(data, backbone, has_fold)
        with suppress(InputError):
            accuracies["graph"][name] = fit_label_spreading(data, backbone)
        with suppress(InputError):
            if backbone is not None:
                accuracies["smoothed"][name] = fit_smoothed_regression(data, backbone)
    with suppress(InputError):  # which takes counts, such as those of words
        accuracies["bayes"][data.views.inputs_name] = fit_naive_bayes(data)
    return accuracies
