"""Test that optimizers are fused on a GPU where that is correct and the user has not chosen otherwise."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from sft_lightning.training.optimizers import Group, configure_optimizer
from sft_lightning.utils.lightning_patches import accepts_found_inf


def make_optimizer(make: Any, device: str = "cuda:0", scaler: object = None, **trainer: Any) -> Optimizer:
    """Return the optimizer of a training on a device, without computing anything there."""
    strategy = SingleDeviceStrategy(device=torch.device(device))
    plugin = SimpleNamespace(scaler=scaler)
    settings = {"gradient_clip_val": None, "precision": "32-true", "strategy": strategy, "precision_plugin": plugin}
    group = Group("all", [torch.nn.Parameter(torch.ones(2))], 1.0)
    optimizer = configure_optimizer(SimpleNamespace(**{**settings, **trainer}), [group], make, None)  # type: ignore[arg-type]
    assert isinstance(optimizer, Optimizer)
    return optimizer


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), Adam, AdamW])
def test_optimizers_are_fused_on_a_gpu(make: Any) -> None:
    optimizer = make_optimizer(make)
    assert [group["fused"] for group in optimizer.param_groups] == [True]
    assert accepts_found_inf(optimizer)
    own = make([torch.nn.Parameter(torch.ones(2))])
    assert not accepts_found_inf(own)
    optimizer.load_state_dict(own.state_dict())  # of a training on a CPU
    assert not accepts_found_inf(optimizer)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (SGD, {"device": "cpu"}),
        (SGD, {"scaler": object()}),
        (SGD, {"precision": "bf16-mixed", "gradient_clip_val": 1.0}),
        (SGD, {"strategy": FSDPStrategy(parallel_devices=[torch.device("cuda:0")])}),
        (lambda p: SGD(p, 0.1, foreach=True), {}),
        (lambda p: SGD(p, 0.1, fused=False), {}),
        (lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.1), {}),
        (lambda p: Adam(p, 0.1, capturable=True, differentiable=True), {}),
        (RMSprop, {}),
    ],
)
def test_other_optimizers_are_left_unchanged(make: Any, where: dict[str, Any]) -> None:
    optimizer = make_optimizer(make, **where)
    assert not any(group.get("fused") for group in optimizer.param_groups)
    assert not accepts_found_inf(optimizer)
