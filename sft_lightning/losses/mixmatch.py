"""MixMatch: Berthelot et al. 2019, "MixMatch: A Holistic Approach to Semi-Supervised Learning"."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.errors import InputError
from sft_lightning.losses.unlabeled import About, Network, Outputs, Result, Strategy, sharpened


class MixMatch(Strategy):
    """Guessed labels of two views, sharpened; then labeled and unlabeled pictures and labels are mixed.

    Computes L_s as well, on the mixed labeled pictures (eq. 3), and L_u as squared error on the mixed unlabeled ones
    (eq. 4). The paper's weight of L_u is 75 to 100 with a linear ramp. Works on pixels.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    student: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = True
    own_supervised: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.5, alpha: float = 0.75) -> None:
        """Sets both.

        Args:
            temperature: Of the sharpening.
            alpha: Of the Beta distribution that shares of the mixture come from.

        Raises:
            InputError: One is not above 0.
        """
        super().__init__()
        if temperature <= 0 or alpha <= 0:
            raise InputError(f"temperature is {temperature}, alpha {alpha}: give numbers above 0")
        self.temperature, self.alpha = temperature, alpha

    def build(self, about: About) -> None:
        """Keeps the number of classes.

        Args:
            about: Sizes.
        """
        self._classes = about.num_classes

    def loss(
        self,
        network: Network,
        unlabeled: Any,
        student: Outputs | None,
        labeled: Any = None,
        known: Outputs | None = None,
    ) -> Result:
        """Squared error on mixed unlabeled pictures; cross-entropy on mixed labeled ones as L_s."""
        with torch.no_grad():
            guesses = [network.outputs(x).logits.float().softmax(1) for x in (unlabeled.weak, unlabeled.weak_2)]
            guess = sharpened((guesses[0] + guesses[1]) / 2, self.temperature)
        x = torch.cat([labeled.x, unlabeled.weak, unlabeled.weak_2])
        target = torch.cat([F.one_hot(labeled.y, self._classes).to(guess), guess, guess])
        share, order = self.mixture(len(x), unlabeled.draw)
        share, order = share.to(x.device), order.to(x.device)
        mixed = torch.lerp(x[order], x, share.view(-1, 1, 1, 1))
        mixed_target = torch.lerp(target[order], target, share[:, None])
        logits = network.outputs(mixed).logits
        count = len(labeled.x)
        supervised = F.cross_entropy(logits[:count], mixed_target[:count])
        loss = F.mse_loss(logits[count:].softmax(1), mixed_target[count:])
        return Result(loss, guess.argmax(1), supervised=supervised)

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
        alphas = torch.full((2, count), self.alpha)
        gammas = torch._standard_gamma(alphas, generator=generator)
        share = gammas[0] / gammas.sum(0).clamp_min(1e-12)
        return torch.maximum(share, 1 - share), order
