"""Runs, parts and names of version 0.1, kept as it wrote them, still work."""

import csv
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning._moved import MOVED

KEPT = Path(__file__).parent / "version_0_1"
RUNS = "lightning_logs/old"


@pytest.fixture
def kept(workdir: Path) -> Path:
    shutil.copytree(KEPT, workdir, dirs_exist_ok=True)
    return workdir


@pytest.mark.parametrize(("run", "accuracy", "loss"), [("fine_tune", 0.375, 1.0966), ("freematch", 0.25, 1.1121)])
def test_a_run_tests_as_the_version_that_made_it_did(kept: Path, run: str, accuracy: float, loss: float) -> None:
    assert main(["test", f"{RUNS}/{run}/version_0"]) == 0
    with (kept / RUNS / run / "version_0" / "metrics.csv").open() as file:
        values = {name: float(value) for _, name, value in list(csv.reader(file))[1:]}
    assert values["test/accuracy"] == accuracy
    assert values["test/loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("run", ["fine_tune", "freematch"])
def test_a_run_goes_on(kept: Path, run: str) -> None:
    # `fit.yaml` of the second names its strategy by a module that has moved.
    checkpoint = kept / RUNS / run / "version_0" / "checkpoints" / "last.ckpt"
    before = torch.load(checkpoint, weights_only=True)["global_step"]
    assert main(["fit", "--ckpt_path", f"{RUNS}/{run}/version_0", "--trainer.max_epochs=3"]) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == before * 3 // 2


def test_a_part_is_a_start(kept: Path) -> None:
    model = FineTuneClassifier("mlp", 3, (1, 8, 8), weights=str(kept / "part" / "backbone.safetensors"))
    trained = torch.load(kept / RUNS / "fine_tune" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, trained["state_dict"][f"backbone.{name}"])


@pytest.mark.parametrize("name", sorted(MOVED))
def test_module_is_found_under_its_old_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)  # the runs above import some, which warns only once
    new = importlib.import_module(MOVED[name])
    with pytest.warns(DeprecationWarning, match=f"{name} is now {MOVED[name]}; the old name will be removed in 0.4"):
        assert importlib.import_module(name) is new
    assert new.__name__ == MOVED[name]
    assert new.__spec__ is not None
    assert new.__spec__.name == MOVED[name]
