import math

import pytest
import torch
from hypothesis import given, strategies as st

from sft_lightning import WarmupCosine


def _optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates], lr=9.0)


@given(st.integers(0, 12), st.integers(1, 40), st.floats(0, 0.9, allow_subnormal=False))
def test_learning_rates_follow_the_formula(warmup: int, total: int, final: float) -> None:
    optimizer = _optimizer(2.0, 0.5)
    schedule = WarmupCosine(optimizer, warmup, total, final)
    for step in range(total + 3):
        if step < warmup:
            share = (step + 1) / warmup
        else:
            done = min(1.0, (step - warmup) / max(1, total - warmup))
            share = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([2 * share, share / 2], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_resumed_schedule_continues_and_keeps_its_explicit_end() -> None:
    first = WarmupCosine(_optimizer(1.0), 2, 10)
    for _ in range(4):
        first.optimizer.step()
        first.step()
    again = WarmupCosine(_optimizer(1.0), 2, 99)
    again.load_state_dict(first.state_dict())
    assert (again.last_epoch, again.total_steps, again.get_lr()) == (4, 10, first.get_lr())


def test_end_derived_from_the_training_is_not_saved() -> None:
    first = WarmupCosine(_optimizer(1.0), 2)
    first.total_steps = 10
    again = WarmupCosine(_optimizer(1.0), 2)
    again.total_steps = 20
    again.load_state_dict(first.state_dict())
    assert again.total_steps == 20
