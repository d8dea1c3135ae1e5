"""Denormal numbers are zero in all threads of a command, and no step asks for a GPU that is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import os, torch
tiny = torch.full((1 << 22,), 1e-39)  # large enough for all threads
print(int((tiny * 0.5 != 0).sum()), "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ, torch.cuda.is_available())
"""
CALL = "import lightning\nfrom sft_lightning.cpu import spare_cpu\nspare_cpu()"
COMMAND = (
    "from sft_lightning.cli import run\n"
    f"run(['fit', '--config', {str(Path(__file__).parents[1] / 'configs/quickstart/fine_tune.yaml')!r}, "
    "'--trainer.fast_dev_run=true', '--trainer.accelerator=cpu'])"
)


@pytest.mark.parametrize("what", [CALL, COMMAND])
def test_spares_the_cpu(what: str, tmp_path: Path) -> None:
    code = f"import torch\ntorch.set_num_threads(2)\n{what}\n{WATCH}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left, asks, gpu = done.stdout.split()[-3:]
    assert left == "0"
    assert asks == gpu
