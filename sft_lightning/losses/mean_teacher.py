"""Mean Teacher: Tarvainen & Valpola 2017, "Mean teachers are better role models"."""

from typing import Any, ClassVar

from torch.nn import functional as F

from sft_lightning.losses.unlabeled import Network, Outputs, Result, Strategy


class MeanTeacher(Strategy):
    """The student's probabilities follow those of the averaged network on another view.

    The decay of the average is `ema_decay` of the paradigm.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "weak_2")
    needs_teacher: ClassVar[bool] = True

    def loss(
        self,
        network: Network,
        unlabeled: Any,
        student: Outputs | None,
        labeled: Any = None,
        known: Outputs | None = None,
    ) -> Result:
        """Mean squared difference of the probabilities; the teacher gets no gradient."""
        assert student is not None
        target = network.teacher_logits(unlabeled.weak_2).float().softmax(1)
        return Result(F.mse_loss(student.logits.softmax(1), target), target.argmax(1))
