"""Mean Teacher: Tarvainen & Valpola 2017, "Mean teachers are better role models"."""

from typing import ClassVar

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

    Reference setting: decay of the average .999 (`ema_decay` of the paradigm), with a sigmoid ramp-up of the weight.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    needs_teacher: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi_label")
    has_one_class = True

    def build(self, context: StrategyContext) -> None:
        """Remember whether examples have one class each.

        Args:
            context: Name of the task.
        """
        self.has_one_class = context.task == "classification"

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the mean squared difference of the probabilities; the teacher gets no gradient."""
        teacher = at_least_float32(step.network.teacher_logits(step.unlabeled.weak_2))
        if self.has_one_class:
            target = teacher.softmax(1)
            return StrategyOutput(F.mse_loss(step.student.logits.softmax(1), target), target.argmax(1))
        return StrategyOutput(F.mse_loss(step.student.logits.sigmoid(), teacher.sigmoid()))
