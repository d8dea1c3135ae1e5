"""Two gloo processes learn what one learns with the same global batch, prototypes, centers and contrasts included."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.paradigms.ddp_worker import DECOUPLED, train_decoupled, train_distilled
from tests.paradigms.helpers import left_by_ranks, moved, teacher, two_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    shutil.copy(teacher(), out / "teacher.ckpt")
    return two_processes("decoupled", out)


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return left_by_ranks(folder)


def test_two_processes_distill_as_one_does(folder: Path, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["distilled"] for rank in ranks)
    alone = train_distilled(folder, 1)
    assert "projector.weight" in alone["state"]
    for key, tensor in alone["state"].items():
        if "metrics" not in key:
            assert first["state"][key].equal(second["state"][key])
            torch.testing.assert_close(first["state"][key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-5)
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)


@pytest.mark.parametrize("name", DECOUPLED)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not {n for n in moved(first["state"], second["state"]) if "metrics" not in n}
    alone = train_decoupled(name, 1)
    for key, tensor in alone["state"].items():
        if "metrics" not in key:
            torch.testing.assert_close(first["state"][key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-5)
    assert first["metrics"] == pytest.approx(second["metrics"])
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert {"val/knn_accuracy", "val/class_mean_accuracy", "val/spread", "val/accuracy"} <= set(alone["metrics"])
