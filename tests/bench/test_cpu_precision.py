"""Compare `scripts/bench/cpu_precision.py --emulate` with torch's own bfloat16, which is slow on most CPUs."""

import sys

import torch
from torch import Tensor, nn

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from cpu_precision import EmulatedBFloat16


def compute_gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        network(x).float().square().mean().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_emulated_gradients_equal_those_of_torch_up_to_the_order_of_sums() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 32), nn.ReLU(), nn.Linear(32, 4)
    network, x = nn.Sequential(*layers), torch.rand(4, 3, 8, 8)
    expected = compute_gradients(network, x)
    with EmulatedBFloat16():
        emulated = compute_gradients(network, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x).dtype == torch.bfloat16
    network.zero_grad()
    network(x).square().mean().backward()
    full = [p.grad for p in network.parameters() if p.grad is not None]
    for torch_grad, emulated_grad, full_grad in zip(expected, emulated, full, strict=True):
        norm = full_grad.norm()
        assert (emulated_grad - torch_grad).norm() < 0.01 * norm
        assert (emulated_grad - full_grad).norm() > 1e-4 * norm  # rounding took place


def test_emulation_leaves_full_precision_unchanged() -> None:
    a, b = torch.rand(5, 7), torch.rand(7, 3)
    with EmulatedBFloat16():
        assert torch.equal(a @ b, torch.mm(a, b))
        emulated = a.bfloat16() @ b.bfloat16()
    assert emulated.dtype == torch.bfloat16
    assert torch.equal(emulated, (a.bfloat16().float() @ b.bfloat16().float()).bfloat16())
