"""A pre-training that was killed goes on from its last checkpoint at the next call."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tests
from sft_lightning.networks.weights import read_weights
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.pretraining import pretrain

STEPS = 200
SCRIPT = f"""
from pathlib import Path
from sft_lightning.solver.pretraining import pretrain
from tests.solver.test_killed_pretraining import open_source
pretrain(open_source(), {STEPS}, "killed", Path("out/pretraining.json"))
"""


def open_source() -> LabeledSource:
    """Open the images, with a network whose steps take milliseconds."""
    source = read_source("images", Path("out"), None, 16, 0, "data")
    choices = replace(source.modality.solve, pretrained="mlp")
    return replace(source, modality=replace(source.modality, solve=choices))


@pytest.mark.slow
def test_a_killed_pretraining_goes_on(workdir: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(workdir / "images", {"train": 4, "unlabeled": 8}, classes=2)
    runs = Path("lightning_logs/killed")
    (runs / "version_0/checkpoints").mkdir(parents=True)  # an earlier run, of other images
    last = runs / "version_1/checkpoints/last.ckpt"
    found = os.pathsep.join([str(Path(tests.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": found}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, env=environment) as process:
        while not last.is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.kill()
    step = read_weights(last)[1]["global_step"]
    assert 0 < step < STEPS
    source = open_source()
    arguments = "killed", Path("out/pretraining.json")
    assert pretrain(source, STEPS, *arguments).samefile(runs / "version_1")
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    assert (runs / "version_1/fit-resumed.yaml").is_file()
    assert read_weights(last)[1]["global_step"] == STEPS
    # Complete, it is returned as it is; with more steps, another run begins.
    before = last.stat().st_mtime_ns
    pretrain(source, STEPS, *arguments)
    assert last.stat().st_mtime_ns == before
    assert pretrain(source, STEPS + 1, *arguments).name == "version_2"
