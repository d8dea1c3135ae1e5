"""In a command denormals are zero in all threads, no step asks for a GPU that is not there, and memory is kept."""

import ctypes
import runpy
from pathlib import Path

import pytest

from tests.forks import started

WATCH = """
import os, torch
tiny = torch.full((1 << 22,), 1e-39)  # large enough for all threads
print(int((tiny * 0.5 != 0).sum()), "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ, torch.cuda.is_available())
"""
COMMAND = (
    "from sft_lightning.cli import run\n"
    f"run(['fit', '--config', {str(Path(__file__).parents[1] / 'configs/quickstart/fine_tune.yaml')!r}, "
    "'--trainer.fast_dev_run=true', '--trainer.accelerator=cpu'])"
)

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


@pytest.mark.parametrize(
    "what", ["from sft_lightning.cpu import keep_memory, spare_cpu\nspare_cpu()\nkeep_memory()", COMMAND]
)
def test_spares_the_cpu_and_keeps_memory(what: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"import torch\ntorch.set_num_threads(2)\n{what}\n{WATCH}\n{FAULTS}")
    done = started(program, tmp_path / "program.py", folder=tmp_path, files=tmp_path / "told")
    done.join(120)
    assert done.exitcode == 0, (tmp_path / "told.stderr").read_text()
    left, asks, gpu, first, *later = (tmp_path / "told.stdout").read_text().split()[-9:]
    assert left == "0"
    assert asks == gpu
    if hasattr(ctypes.CDLL(None), "mallopt"):  # else the C library is not glibc
        assert int(first) > 1000  # otherwise this measures nothing
        assert int(later[-1]) < int(first) / 10, later
