"""`scripts/bench/cpu_precision.py --emulate` against torch's own bfloat16, which is slow where the CPU has none."""

import sys

import torch
from torch import Tensor, nn

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from cpu_precision import Rounded


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        network(x).float().square().mean().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_emulation_rounds_as_torch_does() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 32), nn.ReLU(), nn.Linear(32, 4)
    network, x = nn.Sequential(*layers), torch.rand(4, 3, 8, 8)
    own = gradients(network, x)
    with Rounded():
        emulated = gradients(network, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x).dtype == torch.bfloat16
    network.zero_grad()
    network(x).square().mean().backward()
    full = [p.grad for p in network.parameters() if p.grad is not None]
    for a, b, c in zip(own, emulated, full, strict=True):
        size = c.norm()
        assert (b - a).norm() < 0.01 * size  # the order of sums
        assert (b - c).norm() > 1e-4 * size  # something was rounded


def test_full_precision_is_left_as_it_is() -> None:
    a, b = torch.rand(5, 7), torch.rand(7, 3)
    with Rounded():
        assert torch.equal(a @ b, torch.mm(a, b))
        emulated = a.bfloat16() @ b.bfloat16()
    assert emulated.dtype == torch.bfloat16
    assert torch.equal(emulated, (a.bfloat16().float() @ b.bfloat16().float()).bfloat16())
