"""MixMatch: Berthelot et al. 2019, "MixMatch: A Holistic Approach to Semi-Supervised Learning"."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Strategy,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    sharpen,
)
from sft_lightning.utils.errors import check_positive
from sft_lightning.utils.inputs import concatenate_inputs, count_inputs
from sft_lightning.utils.transfer import to_device


class MixMatch(Strategy):
    """MixUp of labeled and unlabeled examples, with sharpened guesses for the labels of the latter.

    The guess is the sharpened mean prediction of two weak views. L_s is cross-entropy on the mixed labeled examples
    (eq. 3), L_u squared error on the mixed unlabeled ones (eq. 4). Pixels are mixed, and features of tokens.

    Reference setting: T .5, alpha .75, `lambda_u` 75 (CIFAR-10) to 100 with a linear ramp-up.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    student: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = True
    computes_supervised_loss: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.5, alpha: float = 0.75) -> None:
        """Check and store the settings.

        Args:
            temperature: T, temperature of the sharpening.
            alpha: Parameter of the Beta distribution of the mixing weights.

        Raises:
            InputError: A setting is not positive.
        """
        super().__init__()
        check_positive(temperature=temperature, alpha=alpha)
        self.temperature, self.alpha = temperature, alpha

    def build(self, context: StrategyContext) -> None:
        """Store the number of classes.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        self._classes = context.num_classes

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the squared error on mixed unlabeled examples, and cross-entropy on mixed labeled ones as L_s."""
        with torch.no_grad():
            views = (step.unlabeled.weak, step.unlabeled.weak_2)
            guesses = [at_least_float32(step.network.outputs(x).logits).softmax(1) for x in views]
            guess = sharpen((guesses[0] + guesses[1]) / 2, self.temperature)
        x = concatenate_inputs([step.labeled.x, step.unlabeled.weak, step.unlabeled.weak_2])
        target = torch.cat([F.one_hot(step.labeled.y, self._classes).to(guess), guess, guess])
        mixing, order = self.sample_mixture(len(target), step.unlabeled.seed)
        mixing, order = to_device(mixing, target.device), to_device(order, target.device)
        mixed = step.mix(x, order, mixing)
        mixed_target = torch.lerp(target[order], target, mixing.to(target.dtype)[:, None])
        logits = step.network.outputs(mixed).logits
        count = count_inputs(step.labeled.x)
        supervised = F.cross_entropy(logits[:count], mixed_target[:count])
        loss = F.mse_loss(logits[count:].softmax(1), mixed_target[count:])
        return StrategyOutput(loss, guess.argmax(1), supervised=supervised)

    def sample_mixture(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Sample mixing weights and partners.

        Args:
            count: Number of examples.
            seed: Seed of the batch.

        Returns:
            Weights of each example itself, at least one half, and positions of the partners, both (count,).
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        alphas = torch.full((2, count), self.alpha, dtype=torch.float32)
        gammas = torch._standard_gamma(alphas, generator=generator)  # torch.distributions takes no generator
        mixing = gammas[0] / gammas.sum(0).clamp_min(1e-12)
        return torch.maximum(mixing, 1 - mixing), order
