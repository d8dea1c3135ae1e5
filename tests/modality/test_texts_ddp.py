"""Two gloo processes learn from texts what one learns with the same global batch."""

from typing import Any

import pytest
import torch

from tests.paradigms.ddp_worker import TEXTS, train_texts
from tests.paradigms.helpers import left_by_ranks, moved, two_processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return left_by_ranks(two_processes("texts", tmp_path_factory.mktemp("ddp")))


@pytest.mark.parametrize("name", TEXTS)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert not moved(first["state"], second["state"])
    alone = train_texts(name, 1)
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-9, rtol=1e-7, msg=key)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-6)
    assert first["metrics"] == pytest.approx(second["metrics"])
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
