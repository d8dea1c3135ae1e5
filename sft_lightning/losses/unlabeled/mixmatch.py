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
from sft_lightning.utils.transfer import to_device


class MixMatch(Strategy):
    """Guessed labels of two views, sharpened; then labeled and unlabeled pictures and labels are mixed.

    Computes L_s as well, on the mixed labeled pictures (eq. 3), and L_u as squared error on the mixed unlabeled ones
    (eq. 4). The paper's weight of L_u is 75 to 100 with a linear ramp. Works on pixels.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    student: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = True
    computes_supervised_loss: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.5, alpha: float = 0.75) -> None:
        """Sets both.

        Args:
            temperature: Of the sharpening.
            alpha: Of the Beta distribution that shares of the mixture come from.

        Raises:
            InputError: One is not above 0.
        """
        super().__init__()
        check_positive(temperature=temperature, alpha=alpha)
        self.temperature, self.alpha = temperature, alpha

    def build(self, about: StrategyContext) -> None:
        """Keeps the number of classes.

        Args:
            about: Sizes.
        """
        self._classes = about.num_classes

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Squared error on mixed unlabeled pictures; cross-entropy on mixed labeled ones as L_s."""
        with torch.no_grad():
            views = (step.unlabeled.weak, step.unlabeled.weak_2)
            guesses = [at_least_float32(step.network.outputs(x).logits).softmax(1) for x in views]
            guess = sharpen((guesses[0] + guesses[1]) / 2, self.temperature)
        x = torch.cat([step.labeled.x, step.unlabeled.weak, step.unlabeled.weak_2])
        target = torch.cat([F.one_hot(step.labeled.y, self._classes).to(guess), guess, guess])
        share, order = self.mixture(len(x), step.unlabeled.draw)
        share, order = to_device(share, x.device), to_device(order, x.device)
        mixed = torch.lerp(x[order], x, share.to(x.dtype).view(-1, 1, 1, 1))
        mixed_target = torch.lerp(target[order], target, share.to(target.dtype)[:, None])
        logits = step.network.outputs(mixed).logits
        count = len(step.labeled.x)
        supervised = F.cross_entropy(logits[:count], mixed_target[:count])
        loss = F.mse_loss(logits[count:].softmax(1), mixed_target[count:])
        return StrategyOutput(loss, guess.argmax(1), supervised=supervised)

    def mixture(self, count: int, draw: int) -> tuple[Tensor, Tensor]:
        """Shares of at least a half, and partners.

        Args:
            count: How many.
            draw: Seed of the batch.

        Returns:
            (count,) shares, (count,) positions.
        """
        generator = torch.Generator().manual_seed(draw)
        order = torch.randperm(count, generator=generator)
        alphas = torch.full((2, count), self.alpha, dtype=torch.float32)
        gammas = torch._standard_gamma(alphas, generator=generator)
        share = gammas[0] / gammas.sum(0).clamp_min(1e-12)
        return torch.maximum(share, 1 - share), order
