"""CAP: Xie et al. 2023, "Class-Distribution-Aware Pseudo-Labeling for Semi-Supervised Multi-Label Learning"."""

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
)
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_decay, check_fraction, check_min


class ClassAwarePseudoLabels(Strategy):
    """Pseudo-labels of examples with several classes, in the shares that the labels have.

    Of each class, the share of examples that is accepted as positive is its share of the labels times `positive`, and
    that of negative ones its complement times `negative`; the surest come first, the others are left out. The paper
    ranks all unlabeled examples once an epoch. Here the weak views of the last batches are ranked in every step, which
    suits runs of less than an epoch.

    Reference setting: a strong view learns what a weak view of the averaged network gives, lambda_u 1.

    Attributes:
        class_share: Running share of labeled examples that have each class, (C,).
        recent: Logits of the last weak views, (M, C), which rank like probabilities and tie less; NaN where there are
            none yet.
        position: Row of `recent` that is written next.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    student: ClassVar[str | None] = "strong"
    needs_labels: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("multi_label",)
    class_share: Tensor
    recent: Tensor
    position: Tensor

    def __init__(
        self, positive: float = 0.8, negative: float = 0.8, memory: int = 2048, momentum: float = 0.99
    ) -> None:
        """Check and store the settings.

        Args:
            positive: Part of the examples that must have a class, by the labels, that is accepted as positive.
            negative: Part of the others that is accepted as negative.
            memory: Number M of weak views that are ranked.
            momentum: Share of the old class shares that a labeled batch keeps.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__()
        check_fraction(positive=positive, negative=negative)
        check_min(2, memory=memory)
        check_decay(momentum=momentum)
        self.positive, self.negative, self.memory, self.momentum = positive, negative, memory, momentum

    def build(self, context: StrategyContext) -> None:
        """Register the class shares and the memory.

        Args:
            context: Number of classes.
        """
        self.register_buffer("class_share", torch.full((context.num_classes,), -1.0))
        self.register_buffer("recent", torch.full((self.memory, context.num_classes), torch.nan))
        self.register_buffer("position", torch.tensor(0))

    @torch.no_grad()
    def accept(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels and which of them are accepted, after the batch was added to the memory.

        Args:
            logits: Logits of the weak views, (B, C).
            labels: 1 for each class of a labeled example and 0 for the others, (L, C).

        Returns:
            Targets of 0 and 1, (B, C), and weights of 0 and 1, (B, C).
        """
        share = all_gather_cat(labels.to(logits)).mean(0)
        kept = self.momentum * self.class_share + (1 - self.momentum) * share
        self.class_share.copy_(torch.where(self.class_share < 0, share, kept))
        everyone = all_gather_cat(logits.to(self.recent))
        rows = (self.position + torch.arange(len(everyone), device=self.recent.device)) % self.memory
        self.recent[rows] = everyone
        self.position.copy_((self.position + len(everyone)) % self.memory)
        ranked = self.recent.sort(0).values  # NaN last
        count = self.recent[:, 0].isfinite().sum()
        from_top = (self.class_share * self.positive * count).round().long()
        from_bottom = ((1 - self.class_share) * self.negative * count).round().long()
        columns = torch.arange(ranked.shape[1], device=ranked.device)
        high = ranked[(count - from_top).clamp(0, self.memory - 1), columns]
        low = ranked[(from_bottom - 1).clamp_min(0), columns]
        is_positive = (logits >= high) & (from_top > 0)
        is_negative = (logits <= low) & (from_bottom > 0) & ~is_positive
        return is_positive.to(logits), (is_positive | is_negative).to(logits)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute the binary cross-entropy of the strong view for accepted pseudo-labels, averaged over all pairs."""
        weak = at_least_float32(step.network.teacher_logits(step.unlabeled.weak))
        target, weight = self.accept(weak, step.labeled.y)
        each = F.binary_cross_entropy_with_logits(at_least_float32(step.student.logits), target, reduction="none")
        logs = {"accepted": weight.mean(), "accepted_positive": (weight * target).mean()}
        return StrategyOutput((each * weight).mean(), logs=logs)
