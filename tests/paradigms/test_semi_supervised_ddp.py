"""Two gloo processes learn what one learns with the same global batch, global statistics included."""

import json
from typing import Any

import pytest
import torch

from tests.paradigms.ddp_worker import GLOBAL_STATISTICS, SCHEDULES, Schedule, train_semi_supervised
from tests.paradigms.helpers import left_by_ranks, moved, two_processes

NAMES = [*GLOBAL_STATISTICS, "Reconstruction", "MeanTeacher", "DST"]
# The ordinary suite runs one schedule of each strategy, alternately; the slow suite runs both.
RUNS = [
    pytest.param(name, kind, marks=[pytest.mark.slow] if (i + k) % 2 else [])
    for i, name in enumerate(NAMES)
    for k, kind in enumerate(SCHEDULES)
]


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Train what the selected tests need."""
    selected = [item for item in request.session.items if isinstance(item, pytest.Function)]
    requested = {tuple(item.callspec.params.values()) for item in selected if item.path == request.path}
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "requested.json").write_text(json.dumps(sorted(requested)))
    return left_by_ranks(two_processes("semi_supervised", folder))


@pytest.mark.parametrize(("name", "schedule"), RUNS)
def test_replicas_are_equal_to_the_bit(ranks: list[dict[str, Any]], name: str, schedule: Schedule) -> None:
    first, second = (rank[f"{name} {schedule}"]["state"] for rank in ranks)
    assert not moved(first, second)


@pytest.mark.parametrize(
    ("name", "schedule"), [run for run in RUNS if run.values[0] != "Reconstruction"]
)  # has BatchNorm
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], name: str, schedule: Schedule) -> None:
    together, alone = ranks[0][f"{name} {schedule}"], train_semi_supervised(name, schedule, 1)
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(together["state"][key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    both = [rank[f"{name} {schedule}"] for rank in ranks]
    mean = [(a + b) / 2 for a, b in zip(both[0]["losses"], both[1]["losses"], strict=True)]
    assert mean == pytest.approx(alone["losses"], rel=1e-5)
    assert "pseudo_labels/accepted" in alone["health"]
    for rank in both:
        assert rank["health"] == pytest.approx(alone["health"], rel=1e-3)
