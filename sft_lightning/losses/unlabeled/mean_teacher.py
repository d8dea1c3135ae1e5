"""Mean Teacher: Tarvainen & Valpola 2017, "Mean teachers are better role models"."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Strategy,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    at_least_float32,
)


class MeanTeacher(Strategy):
    """Consistency of the student with an averaged teacher that sees another weak view.

    For segmentation, whose weak views move alike, the student sees the strong view in place of the weak one, with other
    colors and perhaps cut and mixed, as do the teacher's probabilities (French et al. 2020, "Semi-supervised semantic
    segmentation needs strong, varied perturbations").

    Reference setting: decay of the average .999 (`ema_decay` of the paradigm), with a sigmoid ramp-up of the weight.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    needs_teacher: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi_label", "segmentation")
    has_one_class = True
    is_dense = False

    def build(self, context: StrategyContext) -> None:
        """Remember whether examples have one class each, and choose the views.

        Args:
            context: Name of the task.
        """
        self.has_one_class = context.task != "multi_label"
        self.is_dense = context.task == "segmentation"
        if self.is_dense:  # of the instance, as the task decides
            self.views, self.student = ("weak", "strong"), "strong"  # type: ignore[misc]

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the mean squared difference of the probabilities; the teacher gets no gradient."""
        if self.is_dense:
            return self._of_pixels(step)
        teacher = at_least_float32(step.network.teacher_logits(step.unlabeled.weak_2))
        if self.has_one_class:
            target = teacher.softmax(1)
            return StrategyOutput(F.mse_loss(step.student.logits.softmax(1), target), target.argmax(1))
        return StrategyOutput(F.mse_loss(step.student.logits.sigmoid(), teacher.sigmoid()))

    def _of_pixels(self, step: StrategyInputs) -> StrategyOutput:
        probabilities = at_least_float32(step.network.teacher_logits(step.unlabeled.weak)).softmax(1)
        inside = torch.ones_like(probabilities[:, 0])
        target, weight = step.unlabeled.align_pixels(probabilities, inside, step.unlabeled.cut)
        each = F.mse_loss(step.student.logits.softmax(1), target, reduction="none").mean(1)
        return StrategyOutput((each * weight).mean(), target.argmax(1), weight)
