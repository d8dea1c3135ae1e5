"""VAT: Miyato et al. 2018, "Virtual Adversarial Training", arXiv 1704.03976."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Network,
    Strategy,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    frozen_bn_stats,
)
from sft_lightning.utils.errors import check_min, check_positive
from sft_lightning.utils.transfer import to_device


class VirtualAdversarial(Strategy):
    """The prediction shall not change in the direction in which it changes most. Works on pixels.

    The clean prediction has a pass of its own: under batch normalization only predictions with the statistics of the
    same pictures differ by the perturbation alone.
    """

    student: ClassVar[str | None] = None

    def __init__(self, epsilon: float = 2.5, xi: float = 0.01, steps: int = 1, entropy: float = 0.0) -> None:
        """Sets the attack.

        Args:
            epsilon: Euclidean length of the perturbation of a picture with pixels in [0, 1].
            xi: Length with which the direction is looked for. The paper's 1e-6 changes a pixel by less than float32
                resolves; a hundredth finds the direction that 1e-6 finds in float64.
            steps: Power iterations.
            entropy: Weight of entropy minimization in addition (VAT+EntMin).

        Raises:
            InputError: One of them is negative or zero.
        """
        super().__init__()
        check_positive(epsilon=epsilon, xi=xi)
        check_min(1, steps=steps)
        check_min(0, entropy=entropy)
        self.epsilon, self.xi, self.steps, self.entropy = epsilon, xi, steps, entropy

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """KL divergence from the prediction to that of the perturbed example."""
        x = step.unlabeled.weak
        with torch.set_grad_enabled(self.entropy > 0):
            logs = at_least_float32(step.network.outputs(x).logits).log_softmax(1)
        clean = logs.detach()
        with frozen_bn_stats(step.network):
            attacked = step.network.outputs(x + self.epsilon * self.direction(step.network, x, step.unlabeled.draw))
        loss = _kl(clean, attacked.logits)
        if self.entropy:
            loss = loss - self.entropy * (logs.exp() * logs).sum(1).mean()
        return StrategyOutput(loss, clean.argmax(1))

    def direction(self, network: Network, x: Tensor, draw: int) -> Tensor:
        """Where the prediction changes most, in full precision: half of it does not resolve so small a change.

        Args:
            network: Whose prediction.
            x: (B, C, H, W).
            draw: Seed of the batch.

        Returns:
            (B, C, H, W), each picture's of length 1.
        """
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(draw), dtype=torch.float32)
        direction = to_device(direction, x.device).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                clean = network.outputs(x).logits.log_softmax(1)
            for _ in range(self.steps):
                r = (self.xi * _unit(direction)).requires_grad_()
                (direction,) = torch.autograd.grad(_kl(clean, network.outputs(x + r).logits), r)
        return _unit(direction)


def _unit(direction: Tensor) -> Tensor:
    return F.normalize(direction.flatten(1), dim=1, eps=1e-20).view_as(direction).detach()


def _kl(logs: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), logs, reduction="batchmean", log_target=True)
