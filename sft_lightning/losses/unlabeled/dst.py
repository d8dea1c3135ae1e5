"""DST: Chen et al. 2022, "Debiased Self-Training for Semi-Supervised Learning"."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
    masked_cross_entropy,
)
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.errors import check_fraction, check_min


class DST(FixMatch):
    """Pseudo-labels train a head of their own, and features are made safe against the worst head.

    The classifier gives the pseudo-labels but never learns from them (section 4.1). A third head is trained to be right
    on labeled and wrong on unlabeled examples; through a gradient reversal the features learn to leave it no room
    (section 4.2). The reversal starts at zero and rises to a tenth, as in the authors' program: at full strength the
    features have nothing to learn from, and training fails. Their dropout in the heads is left out, and the worst head
    sees strong views of unlabeled examples where theirs sees weak ones, which would need a gradient of their own.
    """

    needs_labels = True

    steps: Tensor

    def __init__(
        self,
        threshold: float = 0.7,
        worst: float = 1.0,
        trade_off: float = 1.0,
        reversal: float = 0.1,
        reversal_steps: int = 1000,
        width: int = 2048,
    ) -> None:
        """Sets the weights.

        Args:
            threshold: Least probability of an accepted pseudo-label.
            worst: Weight of the worst head's loss.
            trade_off: eta', weight of the labeled part in it.
            reversal: Share of its gradient that reaches the features in the end, with the opposite sign.
            reversal_steps: Steps until the share is 46 % of that; after five times as many it is 99 %.
            width: Hidden units of the two heads.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__(threshold)
        check_min(0, worst=worst, trade_off=trade_off)
        check_min(1, reversal_steps=reversal_steps, width=width)
        check_fraction(reversal=reversal)
        self.worst, self.trade_off = worst, trade_off
        self.reversal, self.reversal_steps, self.width = reversal, reversal_steps, width

    def build(self, about: StrategyContext) -> None:
        """Two more heads.

        Args:
            about: Sizes.
        """
        self.pseudo_head = self._head(about)
        self.worst_head = self._head(about)
        self.register_buffer("steps", torch.tensor(0))

    def _head(self, about: StrategyContext) -> nn.Module:
        return nn.Sequential(
            nn.Linear(about.num_features, self.width), nn.ReLU(), nn.Linear(self.width, about.num_classes)
        )

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Cross-entropy of the pseudo head, and the worst case."""
        with torch.no_grad():
            logits = at_least_float32(step.network.outputs(step.unlabeled.weak).logits)
            label, weight = self.targets(logits, step)
        consistency = masked_cross_entropy(self.pseudo_head(step.student.features), label, weight)
        share = self.reversal * torch.tanh(self.steps / (2 * self.reversal_steps))
        self.steps += 1
        on_known = self.worst_head(_reversed(step.labeled_outputs.features, share))
        on_strong = at_least_float32(self.worst_head(_reversed(step.student.features, share)))
        right = F.cross_entropy(on_known, step.labeled_outputs.logits.detach().argmax(1))
        wrong = -torch.log1p(-on_strong.softmax(1).gather(1, label[:, None]).clamp(max=1 - 1e-6))
        worst = self.trade_off * right + wrong.mean()
        logs = {"pseudo_head": consistency.detach(), "worst_head": worst.detach()}
        return StrategyOutput(consistency + self.worst * worst, label, weight, logs=logs)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.share * gradients[0], None


def _reversed(x: Tensor, share: Tensor) -> Tensor:
    """The same forward, a share of the negative gradient backward (Ganin & Lempitsky 2015)."""
    result: Tensor = _Reverse.apply(x, share)
    return result
