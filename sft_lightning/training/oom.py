"""Detection of exhausted memory, of a GPU or of the machine, and the message that says what to lower."""

import errno
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from sft_lightning.data.contract import FewLabelData, batch_request, few_label_data
from sft_lightning.utils.errors import InputError, find_input_error

# Messages of errors without a type of their own: CPU on Linux and elsewhere, CUDA, MPS, cuBLAS and C++.
_MESSAGE = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
_REQUESTED = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)
_STAGES: dict[Any, str] = {RunningStage.TESTING: "testing", RunningStage.PREDICTING: "prediction"}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out.

    Args:
        error: Caught exception.
    """
    if isinstance(error, OSError):  # a process could not be started
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MESSAGE.search(str(error))))


def attach_oom_message(error: BaseException, trainer: Trainer) -> None:
    """Attach the message as the cause of an out-of-memory error, where `find_input_error` finds it.

    The exception itself stays, since Lightning checks its type.

    Args:
        error: Exception that ended a command.
        trainer: Trainer of the command, before its teardown.
    """
    if is_out_of_memory(error) and find_input_error(error) is None:
        error.__cause__ = InputError(_format_message(error, trainer))


def _format_message(error: BaseException, trainer: Trainer) -> str:
    data = few_label_data(trainer)
    fits = trainer.state.fn == TrainerFn.FITTING
    where = _STAGES.get(trainer.state.stage, "validation") + (f" after step {trainer.global_step}" if fits else "")
    if trainer.training:
        where = f"training at step {trainer.global_step}"
    kind = "GPU memory" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) else "Memory"
    asked = _REQUESTED.search(str(error))
    more = f", for {_size(*asked.groups())} more" if asked else ""
    sizes, lower = _batch(trainer, data)
    for name, value in {} if data is None else data.size_settings.items():
        sizes.append(f"{name} {value}")
        lower.append(name)
    sizes.append(f"precision {trainer.precision}")
    choice = " or ".join([", ".join(lower[:-1]), lower[-1]] if len(lower) > 1 else lower)
    advice = f"lower {choice or 'the size of the batches'}"
    if str(trainer.precision).startswith("32"):
        advice += ", or set trainer.precision: bf16-mixed"
    if trainer.training and "batch_size" in lower:
        advice += "; with half the batch_size trainer.accumulate_grad_batches: 2 keeps the examples of an update"
    return f"{kind} ran out in {where}{more} ({', '.join(sizes)}): {advice}{_kept(trainer) if fits else ''}"


def _batch(trainer: Trainer, data: FewLabelData | None) -> tuple[list[str], list[str]]:
    """Return the size of a batch, and the settings that determine it."""
    if data is None:
        return [], []
    if not trainer.training:
        return [f"eval_batch_size {data.eval_batch_size}"], ["eval_batch_size"]
    size, ratio = data.batch_size, data.unlabeled_ratio
    if data.batch_budget is not None:  # which is among the `size_settings`
        return [], []
    if len(batch_request(trainer.lightning_module).parts) < 2:
        return [f"batch_size {size}"], ["batch_size"]
    described = f"batch_size {size} with unlabeled_ratio {ratio}: {size} labeled and {size * ratio} unlabeled examples"
    return [described], ["batch_size", *(["unlabeled_ratio"] if ratio > 1 else [])]


def _size(number: str, unit: str) -> str:
    if unit != "bytes":
        return f"{number} {unit}"
    return f"{float(number) / 2**30:,.2f} GiB" if float(number) >= 2**30 else f"{float(number) / 2**20:,.1f} MiB"


def _kept(trainer: Trainer) -> str:
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if folder is None:
        return ""
    last = Path(folder) / "last.ckpt"
    return f"; {last} is kept" if last.is_file() else "; no checkpoint was saved yet"


def read_available_memory() -> int | None:
    """Return how many bytes of main memory are available to the machine and to the cgroup of this process.

    Linux overcommits memory and kills the process that touches too much, so no exception tells that it ran out.

    Returns:
        Number of bytes, or None if the system does not report it.
    """
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    found = [int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]  # version 2
    top = Path("/sys/fs/cgroup")
    for group in (top / own, *(top / own).parents):
        limit, use = group / "memory.max", group / "memory.stat"
        if limit.is_file() and use.is_file() and (most := limit.read_text().strip()).isdecimal():
            used = dict(line.split() for line in use.read_text().splitlines())
            found.append(int(most) - int(used["anon"]))  # the rest is caches, which the kernel reclaims
    return min(found, default=None)


def read_peak_memory() -> int:
    """Return the peak memory of this process in bytes since the last call, or 0 if the system does not report it."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    lines = status.read_text().splitlines() if status.is_file() else []
    with suppress(OSError):  # the peak then counts from the start of the process
        reset.write_text("5")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
