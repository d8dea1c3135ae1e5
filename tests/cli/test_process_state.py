"""After a command, whether it returns or raises, the process that called it is as before."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.utils.errors import InputError, StoppedBySignal
from tests.conftest import CONFIGS

FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--run_name=run"]
FIT += ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1", "--trainer.limit_val_batches=1"]
FIT += ["--trainer.deterministic=true", "--trainer.benchmark=true", "--trainer.enable_progress_bar=false"]


def read_process() -> dict[str, Any]:
    """What other code of the process may count on, by name."""
    loggers = {
        name: (logger.level, logger.propagate, logger.disabled, *logger.handlers, *logger.filters)
        for name, logger in {**logging.root.manager.loggerDict, "root": logging.root}.items()
        if isinstance(logger, logging.Logger) and name.startswith(("root", "lightning", "sft_lightning", "torch"))
    }
    plain = (logging.NOTSET, True, False)  # of a logger that nobody has set up
    return {
        **{f"${name}": value for name, value in os.environ.items()},
        "warnings": ([*warnings.filters], warnings.showwarning),
        "path": [*sys.path],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr),
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "loggers": {name: state for name, state in loggers.items() if state != plain},
        "disabled": logging.root.manager.disable,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "threads": torch.get_num_threads(),
        "types": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "denormals": sys.float_info.min / 2 > 0,
        "folder": os.getcwd(),
    }


@pytest.fixture(autouse=True)
def plain_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no command has run yet."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in ("SFT_VERSION", "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@contextmanager
def unchanged() -> Iterator[None]:
    before = read_process()
    yield
    after = read_process()
    assert {name: after.get(name) for name in {*before, *after} if after.get(name) != before.get(name)} == {}


class Disturbing(Callback):
    """Change what several processes on one machine, and a process group, would; stop as asked."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.inside = error, {}  # type: BaseException | None, dict[str, Any]

    def on_train_batch_end(self, *_: Any) -> None:
        self.inside = read_process()
        for owner, hook in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
            setattr(owner, hook, lambda *_: None)
        os.environ.update(LOCAL_RANK="0", MASTER_PORT="1", WORLD_SIZE="2", OMP_NUM_THREADS="7")
        torch.set_num_threads(torch.get_num_threads() + 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.error is not None:
            raise self.error


def fit_disturbed(disturbing: Disturbing) -> None:
    class Disturbed(SFTCLI):
        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Any:
            return super()._instantiate_trainer(config, [*callbacks, disturbing])

    run(FIT, Disturbed)


@pytest.mark.parametrize("error", [None, InputError("bad"), RuntimeError("worse"), SystemExit(1), KeyboardInterrupt()])
def test_a_training_leaves_the_process_as_it_was(workdir: Path, error: BaseException | None) -> None:
    disturbing = Disturbing(error)
    with unchanged():
        if error is None:
            fit_disturbed(disturbing)
        else:
            with pytest.raises((type(error), SystemExit)):
                fit_disturbed(disturbing)
    inside = disturbing.inside
    assert inside["deterministic"]
    assert inside["cudnn"][0]
    assert {"$SFT_VERSION", "$PL_GLOBAL_SEED", "$PL_SEED_WORKERS", "$CUBLAS_WORKSPACE_CONFIG"} <= {*inside}
    assert inside["path"][-1] == ""


def test_commands_leave_the_process_as_it_was(workdir: Path) -> None:
    run = "lightning_logs/run/version_0"
    for words in (FIT, ["test", run], ["predict", run], ["export", run], ["lineage", run], ["preview", *FIT[1:]]):
        with unchanged():
            assert main(words) == 0
    for words in ([*FIT, "--data.init_args.source=nowhere"], ["repeat", "nowhere"]):
        with unchanged():
            assert main(words) == 2


def test_settings_stay_until_the_outermost_command_ends() -> None:
    with unchanged(), preserve_process():
        with preserve_process():
            os.environ["SFT_VERSION"] = "version_7"
            warnings.simplefilter("error")
        assert os.environ["SFT_VERSION"] == "version_7"
        with pytest.raises(UserWarning, match="as in a command"):
            warnings.warn("as in a command", UserWarning, stacklevel=1)


def test_settings_of_the_user_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    sys.path.append("")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with unchanged(), preserve_process():
        os.environ["PL_GLOBAL_SEED"] = "0"
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("is_on_slurm", [False, True])
def test_a_requeued_job_goes_on_to_ignore_signals(monkeypatch: pytest.MonkeyPatch, is_on_slurm: bool) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if is_on_slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
    before = signal.getsignal(signal.SIGUSR1)

    def stop() -> None:
        with preserve_process():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            raise StoppedBySignal("saved", signal.SIGUSR1)

    try:
        with pytest.raises(StoppedBySignal):
            stop()
        assert signal.getsignal(signal.SIGUSR1) == (signal.SIG_IGN if is_on_slurm else before)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_another_thread_than_the_main_one_may_call_a_command() -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            with preserve_process():
                os.environ["SFT_VERSION"] = "version_7"
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    with unchanged():
        thread.start()
        thread.join()
    assert caught == []
