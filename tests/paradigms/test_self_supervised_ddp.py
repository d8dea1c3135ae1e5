"""Two gloo processes learn what one learns with the same global batch: negatives and statistics are those of both."""

from typing import Any

import pytest
import torch

from sft_lightning.losses import pretraining
from tests.paradigms.ddp_worker import train_self_supervised
from tests.paradigms.helpers import left_by_ranks, moved, two_processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return left_by_ranks(two_processes("self_supervised", tmp_path_factory.mktemp("ddp")))


@pytest.mark.parametrize("name", pretraining.__all__)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = train_self_supervised(name, 1)
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-5)
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert {"val/effective_rank", "val/knn_accuracy"} <= set(first["metrics"])
