import math

import pytest
import torch
from torch import nn

from sft_lightning.training.momentum_network import MomentumNetwork


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.last = nn.Linear(4, 2)


def made(decay: float = 0.9) -> tuple[Net, MomentumNetwork]:
    net = Net()
    return net, MomentumNetwork({"body": net.body, "last": net.last}, decay)


def test_it_follows_once_for_each_step_with_a_decay_that_rises_to_1() -> None:
    net, momentum = made()
    average = net.last.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            net.last.weight.add_(step)
        momentum.follow(dict(net.named_children()), step, 8)
        momentum.follow(dict(net.named_children()), step, 8)  # accumulated gradients: the same step
        decay = 1 - 0.1 * (math.cos(math.pi * (step - 1) / 8) + 1) / 2
        average = decay * average + (1 - decay) * net.last.weight.detach()
        torch.testing.assert_close(momentum.last.weight, average)  # type: ignore[union-attr]
    assert [momentum.decay_at(n, 8) for n in (0, 8, 9)] == pytest.approx([0.9, 1.0, 1.0])
    assert momentum.decay_at(5, None) == 0.9


def test_it_normalizes_by_the_batch_and_gets_no_gradient() -> None:
    net, momentum = made()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    out = momentum(x)
    assert torch.equal(out, net.last(net.body(x)))
    assert not out.requires_grad
    assert not any(p.requires_grad for p in momentum.parameters())
    assert float(momentum.state_dict()["body.1.running_mean"].abs().sum()) > 0


def test_a_resumed_one_catches_up_on_the_step_that_was_saved() -> None:
    net, momentum = made()
    momentum.follow(dict(net.named_children()), 3, 8)
    with torch.no_grad():
        net.last.weight.add_(1)
    other = made()[1]
    other.load_state_dict(momentum.state_dict())
    other.follow(dict(net.named_children()), 3, 8)
    assert torch.equal(other.last.weight, momentum.last.weight)  # type: ignore[arg-type, union-attr]
    for each in (momentum, other):
        each.follow(dict(net.named_children()), 4, 8)
    assert torch.equal(other.last.weight, momentum.last.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(other.last.weight, net.last.weight)  # type: ignore[arg-type, union-attr]


def test_a_second_training_starts_from_zero_again() -> None:
    net, momentum = made()
    momentum.follow(dict(net.named_children()), 50, 50)
    momentum.follow(dict(net.named_children()), 0, 50)
    before = momentum.last.weight.clone()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        net.last.weight.add_(1)
    momentum.follow(dict(net.named_children()), 1, 50)
    assert not torch.equal(momentum.last.weight, before)  # type: ignore[arg-type, union-attr]
