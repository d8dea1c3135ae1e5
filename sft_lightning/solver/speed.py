"""How long a network takes for an example, and label spreading for all, measured."""

import math
import time

import torch
from torch import Tensor

from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.transfer.vectors import choose_device
from sft_lightning.utils.inputs import count_inputs

# Of label spreading: a search for principal components takes as long as adding up this many examples, and a search for
# neighbors this many seconds for each pair.
_PROBED, _COMPONENTS, _NEIGHBORS = 1000, 6000, 20 / 60_000**2
_SPUN = 0.1  # seconds of work by which it is measured how busy the machine is
_NUMBERS = 3 * 32 * 64 * 64  # of the inputs of a measurement, as far as there are at least 8 examples


def measure_seconds(network: Encoder, learns: bool) -> float:
    """Measure the seconds of a pass for one example on the device that would be used, the faster of two.

    Args:
        network: Network, which stays in its mode and keeps its statistics.
        learns: Whether to compute gradients, too.
    """
    device = choose_device()
    network.to(device)
    x = network.make_batch(max(8, _NUMBERS // math.prod(network.input_spec.shape)))
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
    return min(seconds[1:]) / count_inputs(x)


def predict_graph(x: Tensor) -> float:
    """Predict the seconds of label spreading on whitened components, from a measured part of the work.

    Args:
        x: Vectors of all examples, (N, F).
    """
    some = torch.rand(_PROBED, x.shape[1], dtype=torch.float64)
    begin = time.perf_counter()
    some.T @ some
    product = (time.perf_counter() - begin) / _PROBED
    few = min(1.0, len(x) / x.shape[1])  # of fewer examples than features, their products are decomposed
    return product * few * (len(x) + few * _COMPONENTS) + _NEIGHBORS * len(x) ** 2


def measure_busyness() -> float:
    """Measure how many seconds pass for a second of work of a thread, at least 1: others may use the machine, too."""
    begin, end = time.monotonic(), time.thread_time() + _SPUN
    while time.thread_time() < end:
        pass
    return max(1.0, (time.monotonic() - begin) / _SPUN)
