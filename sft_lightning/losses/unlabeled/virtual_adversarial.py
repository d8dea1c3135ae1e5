"""VAT: Miyato et al. 2018, "Virtual Adversarial Training", arXiv 1704.03976."""

from collections.abc import Callable
from operator import attrgetter
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Network,
    Strategy,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    frozen_bn_stats,
)
from sft_lightning.utils.errors import check_min, check_positive
from sft_lightning.utils.inputs import Inputs, get_device
from sft_lightning.utils.transfer import to_device


class VirtualAdversarial(Strategy):
    """KL divergence between the predictions of an example and of its most harmful small perturbation (eq. 5 to 8).

    The clean prediction has a pass of its own: under batch normalization, only predictions that share the statistics of
    the same examples differ by the perturbation alone. The perturbation works on the numbers of the inputs, or, where
    these are entries of a list, such as words, on their embeddings: Miyato et al. 2017, "Adversarial Training Methods
    for Semi-Supervised Text Classification", arXiv 1605.07725.
    """

    student: ClassVar[str | None] = None

    def __init__(self, epsilon: float = 2.5, xi: float = 0.01, steps: int = 1, entropy: float = 0.0) -> None:
        """Check and store the settings.

        Args:
            epsilon: Euclidean norm of the perturbation of an image with pixels in [0, 1]; of embeddings, in units of
                their standard deviation (5 in the paper on texts of hundreds of words).
            xi: Norm of the probe that finds the direction. The paper's 1e-6 changes a pixel by less than float32
                resolves; 0.01 finds the direction that 1e-6 finds in float64.
            steps: Number of power iterations.
            entropy: Weight of additional entropy minimization (VAT+EntMin).

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_positive(epsilon=epsilon, xi=xi)
        check_min(1, steps=steps)
        check_min(0, entropy=entropy)
        self.epsilon, self.xi, self.steps, self.entropy = epsilon, xi, steps, entropy
        self._find_shape: Callable[[Inputs], torch.Size] = attrgetter("shape")
        self._perturb: Callable[[Inputs, Tensor], Inputs] = torch.add

    def build(self, context: StrategyContext) -> None:
        """Find out how the backbone takes a perturbation.

        Args:
            context: Numbers of classes and features, and the backbone.

        Raises:
            InputError: The backbone cannot take one.
        """
        backbone = context.backbone
        self._find_shape, self._perturb = backbone.find_perturbation_shape, backbone.perturb
        self._find_shape(backbone.make_example())

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the KL divergence from the clean prediction to that of the perturbed example."""
        x = step.unlabeled.weak
        with torch.set_grad_enabled(self.entropy > 0):
            log_p = at_least_float32(step.network.outputs(x).logits).log_softmax(1)
        clean = log_p.detach()
        with frozen_bn_stats(step.network):
            direction = self.find_direction(step.network, x, step.unlabeled.seed)
            attacked = step.network.outputs(self._perturb(x, self.epsilon * direction))
        loss = _kl(clean, attacked.logits)
        if self.entropy:
            loss = loss - self.entropy * (log_p.exp() * log_p).sum(1).mean()
        return StrategyOutput(loss, clean.argmax(1))

    def find_direction(self, network: Network, x: Inputs, seed: int) -> Tensor:
        """Find the direction in which the prediction changes most, by power iteration.

        It runs in full precision, since half precision does not resolve so small a change.

        Args:
            network: Network to attack.
            x: Inputs, (B, ...).
            seed: Seed of the batch.

        Returns:
            Directions of norm 1 for each example, (B, ...).
        """
        device = get_device(x)
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(self._find_shape(x), generator=generator, dtype=torch.float32)
        direction = to_device(direction, device)
        if isinstance(x, Tensor):
            direction = direction.to(x.dtype)
        with torch.autocast(device.type, enabled=False):
            with torch.no_grad():
                clean = network.outputs(x).logits.log_softmax(1)
            for _ in range(self.steps):
                r = (self.xi * _normalize(direction)).requires_grad_()
                (direction,) = torch.autograd.grad(_kl(clean, network.outputs(self._perturb(x, r)).logits), r)
        return _normalize(direction)


def _normalize(direction: Tensor) -> Tensor:
    return F.normalize(direction.flatten(1), dim=1, eps=1e-20).view_as(direction).detach()


def _kl(log_p: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), log_p, reduction="batchmean", log_target=True)
