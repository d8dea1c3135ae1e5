"""How long a network takes for an example, measured."""

import time

import torch

from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.transfer.vectors import choose_device

_PIXELS = 32 * 64 * 64  # of the inputs of a measurement, as far as there are at least 8


def measure_seconds(network: Encoder, learns: bool) -> float:
    """Measure the seconds of a pass for one example on the device that would be used, the faster of two.

    Args:
        network: Network, which stays in its mode and keeps its statistics.
        learns: Whether to compute gradients, too.
    """
    device = choose_device()
    network.to(device)
    side = network.input_spec.shape[-1]
    x = torch.rand(max(8, _PIXELS // side**2), *network.input_spec.shape, device=device)
    seconds = []
    with eval_mode(network), torch.set_grad_enabled(learns):
        for _ in range(3):
            begin = time.perf_counter()
            total = network(x).sum()
            if learns:
                total.backward()
            total.item()  # waits for the device
            seconds.append(time.perf_counter() - begin)
    network.zero_grad(set_to_none=True)
    return min(seconds[1:]) / len(x)
