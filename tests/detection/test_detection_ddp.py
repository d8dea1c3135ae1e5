"""Two gloo processes learn the boxes that one learns with the same global batch, and measure the same precision."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.boxes import write_boxes_folder
from tests.detection.detection_worker import NAMES, train
from tests.forks import both_ranks, work
from tests.paradigms.helpers import ROOT, left_by_ranks, moved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    write_boxes_folder(out / "d", {"train": 16, "val": 5}, unlabeled=8)  # 5: one process has one more
    return out


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    done = both_ranks(work, "tests.detection.detection_worker", "d", folder, folder=ROOT, files=folder)
    assert [rank.code for rank in done] == [0, 0], "".join(rank.stderr[-4000:] for rank in done)
    return left_by_ranks(folder)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], folder: Path, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = train(name, 1, folder / "d")
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-9, rtol=1e-6, msg=key)
    measured = [key for key in alone["metrics"] if key.startswith("val/")]
    assert "val/map" in measured
    for key in measured:
        assert first["metrics"][key] == pytest.approx(alone["metrics"][key], abs=1e-6)
        assert first["metrics"][key] == second["metrics"][key]
    if NAMES[name]:
        assert alone["metrics"]["train/pseudo_boxes"] > 0
        assert alone["metrics"]["train/unsupervised"] > 0
        assert any(key.startswith("control.") for key in alone["state"])
