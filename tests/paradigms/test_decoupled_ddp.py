"""Two gloo processes learn what one learns with the same global batch, prototypes, centers and contrasts included."""

from typing import Any

import pytest
import torch

from tests.paradigms.ddp_worker import DECOUPLED, train_decoupled
from tests.paradigms.helpers import left_by_ranks, moved, two_processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return left_by_ranks(two_processes("decoupled", tmp_path_factory.mktemp("ddp")))


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
