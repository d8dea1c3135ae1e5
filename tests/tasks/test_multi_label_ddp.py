"""Two gloo processes learn from examples with several classes what one learns with the same global batch."""

from pathlib import Path

import pytest
import torch

from tests.paradigms.ddp_worker import train_sets
from tests.paradigms.helpers import left_by_ranks, moved, two_processes
from tests.tasks.helpers import write_texts


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 240)
    first, second = (rank["sets"] for rank in left_by_ranks(two_processes("sets", tmp_path)))
    assert not moved(
        {name: value for name, value in first["state"].items() if name != "strategy.recent"},
        {name: value for name, value in second["state"].items() if name != "strategy.recent"},
    )
    alone = train_sets(tmp_path, 1)
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, atol=1e-9, rtol=1e-7, msg=key, equal_nan=True)
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-6)
    assert len(mean) == 10
    assert first["metrics"] == pytest.approx(second["metrics"])
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
