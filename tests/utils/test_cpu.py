"""In training steps alone denormals are zero, no step asks for a GPU that is not there, and memory is kept."""

import ctypes
import math
import runpy
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback

from sft_lightning.utils.cpu import flush_denormals
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.forks import started
from tests.paradigms.helpers import classifier, sample, trainer

WATCH = """
import os, torch
from sft_lightning.utils.cpu import flush_denormals
tiny = torch.full((1 << 22,), 1e-39)  # large enough for all threads
def left(): return int((tiny * 0.5 != 0).sum())
with flush_denormals(): inside = left()
print(inside, left() > 0, "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ, torch.cuda.is_available())
"""
# Looks before the command ends, which puts back what it has changed.
COMMAND = """
from sft_lightning.cli.lightning_cli import SFTCLI, run
class Watching(SFTCLI):
    def after_fit(self):
        runpy.run_path("watch.py")
run(["fit", "--config", {config!r}, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"], Watching)
""".format(config=str(CONFIGS / "quickstart/fine_tune.yaml"))
SPARING = """
from sft_lightning.utils.cpu import retain_freed_memory, prepare_cpu
prepare_cpu()
retain_freed_memory()
runpy.run_path("watch.py")
"""

FAULTS = """
import resource
def step():  # 120 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(7_500_000) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[step() for _ in range(6)])
"""


def program(file: Path) -> None:
    runpy.run_path(str(file))


@pytest.mark.parametrize("what", [SPARING, COMMAND])
def test_spares_the_cpu_and_keeps_memory(what: str, tmp_path: Path) -> None:
    (tmp_path / "watch.py").write_text(f"{WATCH}\n{FAULTS}")
    (tmp_path / "program.py").write_text(f"import runpy, torch\ntorch.set_num_threads(2)\n{what}")
    done = started(program, tmp_path / "program.py", folder=tmp_path, files=tmp_path / "told")
    done.join(120)
    assert done.exitcode == 0, (tmp_path / "told.stderr").read_text()
    inside, outside, asks, gpu, first, *later = (tmp_path / "told.stdout").read_text().split()[-10:]
    assert inside == "0"
    assert outside == "True"
    assert asks == gpu
    if hasattr(ctypes.CDLL(None), "mallopt"):  # else the C library is not glibc
        assert int(first) > 1000  # otherwise this measures nothing
        assert int(later[-1]) < int(first) / 10, later


def keeps_denormals() -> bool:
    return sys.float_info.min / 2 > 0


def test_the_mode_that_a_user_has_set_stays() -> None:
    torch.set_flush_denormal(True)
    try:
        with flush_denormals():
            pass
        assert not keeps_denormals()
    finally:
        torch.set_flush_denormal(False)


class Watching(torch.optim.SGD):
    """Notes the mode at each step."""

    kept: ClassVar[list[bool]] = []

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        self.kept.append(keeps_denormals())
        super().step()
        return loss


class WatchingCallback(Callback):
    """Notes the mode around each step and in a validation."""

    def __init__(self) -> None:
        self.kept: list[bool] = []

    def note(self, *_: Any) -> None:
        self.kept.append(keeps_denormals())


for _hook in (
    "fit_start",
    "train_batch_start",
    "train_batch_end",
    "validation_batch_end",
    "train_epoch_end",
    "fit_end",
):
    setattr(WatchingCallback, f"on_{_hook}", WatchingCallback.note)


def test_denormals_are_zero_within_training_steps_alone() -> None:
    Watching.kept.clear()
    watcher = WatchingCallback()
    model = classifier(optimizer=lambda p: Watching(p, 0.1))
    trainer([watcher], max_epochs=1, limit_train_batches=2).fit(model, sample())
    assert Watching.kept == [False, False]
    assert len(watcher.kept) >= 8
    assert all(watcher.kept)


def test_a_failed_step_leaves_the_mode_as_it_was() -> None:
    model = classifier(lr=math.inf)
    with pytest.raises(InputError):
        trainer(max_epochs=1).fit(model, sample())
    assert keeps_denormals()
