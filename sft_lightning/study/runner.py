"""Trains what a study lists: finished runs are kept, interrupted ones go on, a failed one does not stop the rest."""

import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from sft_lightning import ImageDataModule
from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.cli.logging import silence_logs, silence_third_party
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.data.digests import combine_digests
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.runs.paths import LOGS, describe_failure, is_below_logs
from sft_lightning.runs.record import RunRecord
from sft_lightning.study.baselines import fit_logistic_regression
from sft_lightning.study.plan import StudyRun
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, StoppedBySignal
from sft_lightning.utils.json_files import read_json

RunResult = dict[str, Any]
_NUMBERS = ("seconds", "test_last", "test_best", "val_best", "steps", "tested")
_WORDS = ("folder", "failed", "network", "start", "job", "test_set")
Launch = Callable[[list[StudyRun], "Ledger", str, int | None], Iterator[tuple[StudyRun, RunResult]]]


class Ledger:
    """`study.json`: what is known of each run by its key, written whole after each."""

    def __init__(self, path: Path) -> None:
        """Reads what is there.

        Args:
            path: The file.

        Raises:
            InputError: It cannot be read.
        """
        self.path = path
        self.results: dict[str, RunResult] = {}
        if path.is_file():
            try:
                found = dict(read_json(path, "remove it to run all anew"))
                self.results = {key: check_result(result) for key, result in found.items()}
            except (ValueError, TypeError) as error:
                raise InputError(f"{str(path)!r} cannot be read ({error}): remove it to run all anew") from error

    def add(self, key: str, result: RunResult) -> None:
        """Keeps a result.

        Args:
            key: Of the run.
            result: What `perform` gave, or `failed` with the reason.
        """
        self.results[key] = result
        write_json(self.path, self.results)

    def done(self, key: str, final: bool = False) -> bool:
        """Whether a run has finished.

        Args:
            key: Of the run.
            final: Whether it has to be tested, too: it may have been a stage of a method that is no more.
        """
        result = self.results.get(key, {})
        return "folder" in result and (not final or "test_last" in result)


def check_result(found: Any) -> RunResult:
    """A result that was read from a file.

    Args:
        found: What stood there.

    Raises:
        ValueError: It is none that `try_perform` gives.
    """
    if not isinstance(found, dict):
        raise ValueError(f"a result is {found!r:.40}, no mapping")
    numbers = {name: found[name] for name in _NUMBERS if name in found}
    words = {name: found[name] for name in _WORDS if found.get(name) is not None}
    shares = found.get("logistic", {})
    if not isinstance(shares, dict):
        raise ValueError("logistic is no mapping")
    for name, value in {**numbers, **shares}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r:.40}, no number")
    for name, value in words.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r:.40}, no text")
    if not isinstance(found.get("inputs") or {}, dict):
        raise ValueError("inputs is no mapping")
    if "folder" in found and not is_below_logs(found["folder"].removeprefix(f"{LOGS}/")):
        raise ValueError(f"folder is {found['folder']!r:.80}, which does not lie in {LOGS}")
    return found


def train(
    runs: Sequence[StudyRun],
    ledger: Ledger,
    folder: str,
    jobs: int | None,
    say: Callable[[str], None],
    launch: Launch | None = None,
) -> None:
    """Trains all runs that are not done, each after the one that it starts from.

    Args:
        runs: From `plan`.
        ledger: Gets the results.
        folder: Below `lightning_logs`, where the runs' folders are made.
        jobs: So many at the same time; None for what `launch` does by itself.
        say: Told a line after each run.
        launch: Trains them in another way than `train_locally`.

    Raises:
        Stopped: By a signal.
    """
    waiting = list_pending(runs, ledger)
    total, begin = len(waiting), time.monotonic()
    try:
        for finished, (one, result) in enumerate((launch or train_locally)(waiting, ledger, folder, jobs), 1):
            ledger.add(one.key, {**result, "start": one.start, "inputs": one.inputs})
            minutes = (time.monotonic() - begin) / finished * (total - finished) / 60
            outcome = f"failed: {result['failed']}" if "failed" in result else _format_result(result)
            say(f"{finished}/{total}  {one.title}: {outcome}; {total - finished} left, about {minutes:.0f} min")
    except (StoppedBySignal, KeyboardInterrupt) as error:
        if launch is not None:
            raise
        number = error.signal if isinstance(error, StoppedBySignal) else signal.SIGINT
        name = signal.Signals(number).name
        raise StoppedBySignal(f"{name}: start the study again to go on", number) from error


def list_pending(runs: Sequence[StudyRun], ledger: Ledger) -> list[StudyRun]:
    """The runs that are to be trained, each once, however many methods share it.

    Args:
        runs: From `plan`.
        ledger: With the results.
    """
    unique: dict[str, StudyRun] = {}
    for one in runs:
        unique.setdefault(one.key, one)
    for one in runs:  # what is the last stage of one method, and not of another, is tested
        if one.final:
            unique[one.key] = one
    return [run for run in unique.values() if not ledger.done(run.key, run.final)]


def _format_result(result: RunResult) -> str:
    return f"test accuracy {result['test_last']:.4f}" if "test_last" in result else f"{result['seconds']:.0f} s"


def train_locally(
    waiting: list[StudyRun], ledger: Ledger, folder: str, jobs: int | None
) -> Iterator[tuple[StudyRun, RunResult]]:
    """Each run with its result, as soon as it has one, trained on this machine.

    Args:
        waiting: What is to be trained.
        ledger: With the results of what runs start from.
        folder: Below `lightning_logs`.
        jobs: Processes at the same time; 1 or None for this one.
    """
    waiting = list(waiting)
    if jobs is None or jobs == 1:
        for one in waiting:
            yield one, try_perform(one, find_start_folder(one, ledger), folder)
        return
    # Each process is a pool of its own: one that is killed takes no other training with it.
    pools = [_make_pool(jobs) for _ in range(jobs)]
    running: dict[Future[RunResult], tuple[StudyRun, int]] = {}
    try:
        while waiting or running:
            open_keys = {one.key for one in [*waiting, *(one for one, _ in running.values())]}
            ready = [one for one in waiting if one.start not in open_keys]
            idle = {*range(jobs)} - {k for _, k in running.values()}
            for one, k in zip(ready, sorted(idle), strict=False):
                waiting.remove(one)
                running[pools[k].submit(try_perform, one, find_start_folder(one, ledger), folder)] = one, k
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one, k = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = {"failed": "its process was killed, for want of memory perhaps: give fewer --jobs"}
                    pools[k].shutdown()
                    pools[k] = _make_pool(jobs)
                yield one, result
    finally:
        for pool in pools:
            pool.shutdown()


def _make_pool(jobs: int) -> ProcessPoolExecutor:
    threads = max(1, count_cores() // jobs)
    # Forked from one process that has imported all, and has touched no GPU; Windows has no such way.
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(1, context, prepare_process, (threads,))


def prepare_process(threads: int) -> None:
    """Sets up a process for some trainings.

    Args:
        threads: Of each.
    """
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    """Ends this process when the study is killed: started again, it would train the same run in the same folder."""
    if parent is not None:
        parent.join()
        os._exit(1)


def find_start_folder(one: StudyRun, ledger: Ledger) -> str | None:
    """The folder of the run that this one starts from, None without one, "" where that one failed.

    Args:
        one: The run.
        ledger: With the results.
    """
    return None if one.start is None else ledger.results.get(one.start, {}).get("folder", "")


def try_perform(one: StudyRun, start: str | None, folder: str) -> RunResult:
    """What `perform` gives, or the reason why there is nothing.

    Args:
        one: The run.
        start: From `find_start_folder`.
        folder: Below `lightning_logs`.
    """
    if start == "":
        return {"failed": "the stage that it starts from has failed"}
    try:
        return perform(one, start, folder)
    except Exception as error:
        return {"failed": describe_failure(error)}
    finally:
        gc.collect()  # trainer and module know each other, and the memory that they hold may be what the next run needs


def perform(one: StudyRun, start: str | None, folder: str) -> RunResult:
    """Trains one run, goes on where an earlier attempt stopped, and tests it if it is the last of its method.

    Args:
        one: The run.
        start: Folder of the run whose weights it starts from, or None.
        folder: Below `lightning_logs`.

    Returns:
        `folder`, `seconds`; of a final run also `test_last` (of the last iterate), `test_best` and `val_best` (of the
        one that the validation split chose, where there is one), `network`, `steps`, `tested` (pictures), `test_set`
        (digest of their names and content), and the test accuracies of `logistic` regressions on the same split by what
        they see.
    """
    begin = time.monotonic()
    words = [*one.words, f"--run_name={folder}/{one.folder}", "--trainer.enable_progress_bar=false"]
    if start is not None:
        words.append(f"--model.init_args.weights={start}")
    with preserve_process(), silence_logs():
        silence_third_party()
        cli = command(["fit", *words, *_resume_argv(Path(LOGS) / folder, one)])
        result: RunResult = {"folder": str(cli.trainer.log_dir), "seconds": round(time.monotonic() - begin, 3)}
        if one.final:
            result.update(_test(cli, Path(result["folder"])))
    return result


def _resume_argv(runs: Path, one: StudyRun) -> list[str]:
    """The words that make `fit` go on with an attempt that was stopped, also of a method that was called otherwise."""
    saved = list(runs.glob(f"*_{one.digest}/version_*/checkpoints/last.ckpt"))
    return ["--ckpt_path", str(max(saved, key=lambda path: path.stat().st_mtime).parents[1])] if saved else []


def _test(cli: SFTCLI, folder: Path) -> RunResult:
    data, model, trainer = cli.datamodule, cli.model, cli.trainer

    def accuracy(checkpoint: Path) -> float:
        tested = command(["test", "--ckpt_path", str(checkpoint), "--trainer.enable_progress_bar=false"])
        return round(float(tested.trainer.callback_metrics["test/accuracy"]), 6)

    found: RunResult = {"test_last": accuracy(folder / "checkpoints" / "last.ckpt"), "steps": trainer.global_step}
    saved = trainer.checkpoint_callback
    if isinstance(saved, RunCheckpoint) and saved.best_model_path and saved.best_model_score is not None:
        found["test_best"] = accuracy(Path(saved.best_model_path))
        if math.isfinite(score := float(saved.best_model_score)):
            found["val_best"] = round(score, 4)
    found["network"] = model.backbone.name
    found["tested"] = len(data.splits["test"])
    found["logistic"] = {}
    if isinstance(data, ImageDataModule):
        test = data.splits["test"]
        found["test_set"] = combine_digests(zip(test.ids, test.part.images.fingerprints(test.indices), strict=True))
        found["logistic"] = _fit_baselines(cli, folder)
    return found


def _fit_baselines(cli: SFTCLI, folder: Path) -> dict[str, float]:
    """Logistic regression on the pixels, and on the features of what the network starts from, where it starts so."""
    found = {}
    data = cli.datamodule
    weights = RunRecord(folder).chain[-1].get("weights", "none")
    try:
        found["pixels"] = fit_logistic_regression(data)
        if weights != "none":
            backbone, _ = build_backbone(cli.model.backbone.name, data.image_shape, weights)
            found["its start"] = fit_logistic_regression(data, backbone=backbone)
    except InputError:  # too large to be done in memory; the study goes on without
        pass
    return found
