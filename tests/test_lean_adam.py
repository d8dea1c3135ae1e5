"""The lean update is the optimizer's own, to the last bit, whatever happens between two steps."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sft_lightning.lean_adam import LeanAdam, suits

Change = Callable[[nn.Sequential, Optimizer, int], None]


def nothing(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    pass


def rate_and_momentum(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = 0.1 / (step + 1), (0.8 + 0.01 * step, 0.99)


def released_later(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """The first layer has a gradient from the fourth step on, and none in the seventh."""
    if step < 4 or step == 7:
        for p in network[0].parameters():
            p.grad = None


def left_out(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    if step in (0, 5):
        network.zero_grad()


def loaded(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """In the sixth step the optimizer goes back to where it is in the third, mended in between."""
    if step == 3:
        optimizer.kept = deepcopy(optimizer.state_dict())  # type: ignore[attr-defined]
    if step == 6:
        optimizer.load_state_dict(optimizer.kept)  # type: ignore[attr-defined]


def forgotten(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """The state of the last layer, and another tensor in place of one, as callbacks that reset a layer do it."""
    if step == 4:
        optimizer.state.pop(cast(Tensor, network[2].bias))
    if step == 6:
        optimizer.state[cast(Tensor, network[0].bias)]["exp_avg"] = torch.zeros(5)


def other_groups(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """Its own state is loaded, which makes new groups of the same tensors, and their rates change."""
    if step == 4:
        optimizer.load_state_dict(optimizer.state_dict())
    if step == 6:
        for group in optimizer.param_groups:
            group["lr"] *= 3


def added(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """A group more."""
    if step == 4:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.1})
    if step >= 4:
        optimizer.param_groups[-1]["params"][0].grad = torch.ones(2)


def hooked(network: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """From the eighth step on."""
    if step == 8:
        optimizer.register_step_post_hook(lambda *_: None)


def trained(make: Callable[[Any], Optimizer], change: Change, lean: bool) -> tuple[list[Tensor], Optimizer, int]:
    """Parameters after each step, and how often the optimizer's own step was made."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = make([{"params": network[0].parameters(), "lr": 0.01}, {"params": network[2].parameters()}])
    assert suits(optimizer)
    calls, own = [], optimizer.step

    def counted() -> None:
        calls.append(1)
        own()

    optimizer.step = counted  # type: ignore[method-assign,assignment]
    update = LeanAdam(optimizer).step if lean else optimizer.step
    after = []
    for step in range(10):
        network.zero_grad()
        network(torch.rand(8, 6)).square().mean().backward()
        change(network, optimizer, step)
        update()
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    return after, optimizer, len(calls)


@pytest.mark.parametrize(("change", "own"), [
    (nothing, 1), (rate_and_momentum, 1), (left_out, 4), (released_later, 4), (loaded, 2),
    (forgotten, 3), (other_groups, 2), (added, 2), (hooked, 3),
])  # fmt: skip
@pytest.mark.parametrize("make", [
    lambda groups: Adam(groups, lr=0.02, fused=True),
    lambda groups: Adam(groups, lr=0.02, weight_decay=0.1, maximize=True, eps=1e-3, fused=True),
    lambda groups: AdamW(groups, lr=0.02, weight_decay=0.1, fused=True),
])  # fmt: skip
def test_equals_the_optimizers_step(make: Callable[[Any], Optimizer], change: Change, own: int) -> None:
    expected, plain, _ = trained(make, change, lean=False)
    found, optimizer, calls = trained(make, change, lean=True)
    assert calls == own  # all others were lean
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(expected[8], expected[9])
    states = [one.state_dict()["state"] for one in (plain, optimizer)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    optimizer.step()  # counts that are parts of one tensor are still counted one by one
    plain.step()
    assert all(
        torch.equal(state["step"], optimizer.state_dict()["state"][index]["step"])
        for index, state in plain.state_dict()["state"].items()
    )


def made(kind: type[Optimizer], dtype: torch.dtype = torch.float32, **settings: Any) -> Optimizer:
    return kind([nn.Parameter(torch.zeros(3, dtype=dtype))], lr=0.1, **settings)  # type: ignore[call-arg]


def test_what_is_not_plain_adam_steps_by_itself() -> None:
    class Own(Adam):
        pass

    assert suits(made(Adam, fused=True))
    assert suits(made(AdamW, fused=True))
    others = [
        made(SGD, fused=True), made(Adam), made(Adam, fused=True, amsgrad=True), made(Own, fused=True),
        made(Adam, torch.float64, fused=True),
    ]  # fmt: skip
    assert not any(suits(other) for other in others)
    with_hook, wrapped, scheduled = (made(Adam, fused=True) for _ in range(3))
    with_hook.register_step_post_hook(lambda *_: None)
    assert not suits(with_hook)
    LambdaLR(scheduled, lambda step: 1.0)
    assert suits(scheduled)
    step = wrapped.step
    wrapped.step = lambda closure=None: step(closure)  # type: ignore[method-assign,assignment]
    assert not suits(wrapped)
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        assert not suits(made(Adam, fused=True))
    finally:
        handle.remove()
