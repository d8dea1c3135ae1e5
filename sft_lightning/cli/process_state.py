"""Settings of the process that a command changes, and that are restored when it ends."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sft_lightning.cli.logging import LOGGERS
from sft_lightning.utils.errors import StoppedBySignal

# Variables that a command or Lightning sets. Those of other libraries stay: wandb's names its running service, and
# scikit-learn sets its own once, at import.
_ENVIRONMENT = (
    "SFT_VERSION",  # version of the run's folder, for the processes of DDP
    "PL_GLOBAL_SEED",  # Lightning's seed, which later code would take as its own
    "PL_SEED_WORKERS",
    "PYTORCH_NVML_BASED_CUDA_CHECK",  # see `prepare_cpu`
    "CUBLAS_WORKSPACE_CONFIG",  # set by `trainer.deterministic`
    "CUDA_DEVICE_ORDER",
    "OMP_NUM_THREADS",  # this and all below are for several processes on one machine
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "RANK",
    "LOCAL_RANK",  # left behind, it would make the next run the child of another process
    "WORLD_SIZE",
)
_is_preserved = False


@contextmanager
def preserve_process() -> Iterator[None]:
    """Restore what a command has changed in the process, whether it returns or raises.

    This covers warning filters, environment variables, `sys.path`, loggers, signal handlers, hooks for exceptions, and
    torch's settings for deterministic algorithms, cuDNN's benchmark and the number of threads. A nested context does
    nothing, so that a command that first prepares a training and then runs it keeps its settings in between.

    Random number generators are not restored: two runs without a seed would get the same weights.
    """
    global _is_preserved
    if _is_preserved:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for keep in (_keep_environment, _keep_hooks, _keep_loggers, _keep_torch):
            stack.callback(keep())
        put_back_handlers, is_requeued = _keep_handlers(), False
        _is_preserved = True
        try:
            yield
        except StoppedBySignal:
            # SLURM sends a requeued job more signals, which must not cut short what is still written.
            is_requeued = "SLURM_JOB_ID" in os.environ
            raise
        finally:
            _is_preserved = False
            if not is_requeued:
                put_back_handlers()


def _keep_environment() -> Callable[[], None]:
    kept, has_here = {name: os.environ.get(name) for name in _ENVIRONMENT}, "" in sys.path

    def put_back() -> None:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if not has_here and "" in sys.path:
            sys.path.remove("")

    return put_back


def _keep_hooks() -> Callable[[], None]:
    kept = sys.excepthook, threading.excepthook, sys.unraisablehook

    def put_back() -> None:
        sys.excepthook, threading.excepthook, sys.unraisablehook = kept  # the first is changed by a process group

    return put_back


def _keep_loggers() -> Callable[[], None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    kept = [(logger.level, logger.propagate, [*logger.handlers], [*logger.filters]) for logger in loggers]

    def put_back() -> None:
        for logger, (level, propagate, handlers, filters) in zip(loggers, kept, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers[:], logger.filters[:] = propagate, handlers, filters

    return put_back


def _keep_handlers() -> Callable[[], None]:
    kept = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def put_back() -> None:
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            return
        for number, handler in kept.items():
            if handler is not None and signal.getsignal(number) != handler:  # None is one that Python has not set
                signal.signal(number, handler)

    return put_back


def _keep_torch() -> Callable[[], None]:
    if "torch" not in sys.modules:  # so nobody here relies on its settings, and it takes seconds to import
        return lambda: None
    import torch

    def read() -> tuple[Any, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
        )

    kept = read()

    def put_back() -> None:
        if read() != kept:
            is_deterministic, only_warns, torch.backends.cudnn.benchmark, threads = kept
            torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
            torch.set_num_threads(threads)

    return put_back
