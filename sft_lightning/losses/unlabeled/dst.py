"""DST: Chen et al. 2022, "Debiased Self-Training for Semi-Supervised Learning"."""

from typing import Any, ClassVar

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
    """Debiased self-training: a separate head for pseudo-labels, and features that resist the worst-case head.

    The classifier makes the pseudo-labels but never learns from them; a pseudo head does (section 4.1). A worst-case
    head learns to be right on labeled and wrong on unlabeled examples, and a gradient reversal trains the features
    against it (section 4.2). As in the authors' code, the reversal rises from 0 to a tenth: at full strength training
    fails. Differences from that code: no dropout in the heads, and the worst-case head sees strong views of unlabeled
    examples, since weak ones would need another pass with gradient.
    """

    needs_labels = True
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    steps: Tensor

    def __init__(
        self,
        threshold: float = 0.7,
        worst: float = 1.0,
        trade_off: float = 1.0,
        reversal: float = 0.1,
        reversal_steps: int = 1000,
        width: int = 2048,
        **consistency: Any,
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: Minimum probability of an accepted pseudo-label.
            worst: Weight of the worst-case head's loss.
            trade_off: eta', weight of the labeled part of that loss.
            reversal: Final factor of the reversed gradient that reaches the features.
            reversal_steps: Steps until the factor is at 46 % of its final value; after five times as many it is at
                99 %.
            width: Number of hidden units of both heads.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(threshold, **consistency)
        check_min(0, worst=worst, trade_off=trade_off)
        check_min(1, reversal_steps=reversal_steps, width=width)
        check_fraction(reversal=reversal)
        self.worst, self.trade_off = worst, trade_off
        self.reversal, self.reversal_steps, self.width = reversal, reversal_steps, width

    def build(self, context: StrategyContext) -> None:
        """Build the pseudo head and the worst-case head.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        self.pseudo_head = self._build_head(context)
        self.worst_head = self._build_head(context)
        self.register_buffer("steps", torch.tensor(0))

    def _build_head(self, context: StrategyContext) -> nn.Module:
        return nn.Sequential(
            nn.Linear(context.num_features, self.width), nn.ReLU(), nn.Linear(self.width, context.num_classes)
        )

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the cross-entropy of the pseudo head plus the worst-case loss."""
        with torch.no_grad():
            label, weight = self.targets(self.weak_logits(step), step)
        consistency = masked_cross_entropy(self.pseudo_head(step.student.features), label, weight)
        scale = self.reversal * torch.tanh(self.steps / (2 * self.reversal_steps))
        self.steps += 1
        on_labeled = self.worst_head(_reverse_gradient(step.labeled_outputs.features, scale))
        on_strong = at_least_float32(self.worst_head(_reverse_gradient(step.student.features, scale)))
        right = F.cross_entropy(on_labeled, step.labeled_outputs.logits.detach().argmax(1))
        wrong = -torch.log1p(-on_strong.softmax(1).gather(1, label[:, None]).clamp(max=1 - 1e-6))
        worst = self.trade_off * right + wrong.mean()
        logs = {"pseudo_head": consistency.detach(), "worst_head": worst.detach()}
        return StrategyOutput(consistency + self.worst * worst, label, weight, logs=logs)


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.scale * gradients[0], None


def _reverse_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """Return x, whose gradient is multiplied by -scale in the backward pass (Ganin & Lempitsky 2015)."""
    result: Tensor = _GradientReversal.apply(x, scale)
    return result
