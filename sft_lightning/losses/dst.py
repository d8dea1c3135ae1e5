"""DST: Chen et al. 2022, "Debiased Self-Training for Semi-Supervised Learning"."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.errors import at_least
from sft_lightning.losses.fixmatch import FixMatch
from sft_lightning.losses.unlabeled import About, Result, Step, at_least_float32, masked_cross_entropy


class DST(FixMatch):
    """Pseudo-labels train a head of their own, and features are made safe against the worst head.

    The classifier gives the pseudo-labels but never learns from them (section 4.1). A third head is trained, through a
    gradient reversal, to be right on labeled and wrong on unlabeled examples; the features learn to leave it no room
    (section 4.2).
    """

    needs_labels = True

    def __init__(self, threshold: float = 0.7, worst: float = 1.0, trade_off: float = 1.0) -> None:
        """Sets the weights.

        Args:
            threshold: Least probability of an accepted pseudo-label.
            worst: Weight of the worst head's loss.
            trade_off: eta', weight of the labeled part in it.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__(threshold)
        at_least(0, worst=worst, trade_off=trade_off)
        self.worst, self.trade_off = worst, trade_off

    def build(self, about: About) -> None:
        """Two more heads.

        Args:
            about: Sizes.
        """
        self.pseudo_head = nn.Linear(about.num_features, about.num_classes)
        self.worst_head = nn.Linear(about.num_features, about.num_classes)

    def loss(self, step: Step) -> Result:
        """Cross-entropy of the pseudo head, and the worst case."""
        with torch.no_grad():
            logits = at_least_float32(step.network.outputs(step.unlabeled.weak).logits)
            label, weight = self.targets(logits, step)
        own = self.pseudo_head(step.student.features)
        consistency = masked_cross_entropy(own, label, weight)
        on_known = self.worst_head(_reversed(step.known.features))
        on_strong = self.worst_head(_reversed(step.student.features))
        right = F.cross_entropy(on_known, step.known.logits.detach().argmax(1))
        wrong = -torch.log1p(-on_strong.softmax(1).gather(1, own.detach().argmax(1, keepdim=True)).clamp(max=1 - 1e-6))
        worst = self.trade_off * right + wrong.mean()
        logs = {"pseudo_head": consistency.detach(), "worst_head": worst.detach()}
        return Result(consistency + self.worst * worst, logits.argmax(1), weight, logs=logs)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


def _reversed(x: Tensor) -> Tensor:
    """The same forward, the negative gradient backward (Ganin & Lempitsky 2015)."""
    result: Tensor = _Reverse.apply(x)
    return result
