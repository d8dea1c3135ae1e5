"""Distillation: a small network learns from the answers and features of a trained one, on labels and pool alike.

min_theta w_s L_s + w_a L(z(x), z_t(x)) + w_f ||p(f(x)) - f_t(x)||^2 with logits z and features f of the student, those
of the teacher t, and a linear projection p that is discarded afterward. Both see the same random view of an example, as
Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent", found to matter most.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.data.contract import few_label_data
from sft_lightning.losses.distillation import ANSWER_LOSSES, AnswerLoss, compare_features
from sft_lightning.losses.teacher import Teacher, load_teacher
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.training.optimizers import Group
from sft_lightning.utils.errors import InputError, check_min, check_positive
from sft_lightning.utils.inputs import InputSpec, concatenate_inputs


class DistillModule(FineTuneClassifier):
    """A classifier that learns from a teacher and from labels.

    The teacher is loaded when training starts and stays out of checkpoints: evaluation and prediction need none.

    Attributes:
        projector: Layer from the features of the student to those of the teacher; None where features are not compared.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    fit_only: ClassVar[tuple[str, ...]] = ("projector.",)  # what `fit` adds to checkpoints and nothing else needs

    def __init__(
        self,
        teacher: str,
        answer_loss: AnswerLoss = "kl",
        temperature: float = 2.0,
        answer_weight: float = 1.0,
        feature_weight: float | None = None,
        label_weight: float = 1.0,
        **classifier: Any,
    ) -> None:
        """Build the student.

        Args:
            teacher: Network to learn from: the folder of a run or of a solution of `solve`, a checkpoint, or the name
                of a backbone with published weights, which teaches features alone.
            answer_loss: Loss between the answers: `kl` (Hinton et al. 2015), or `dist` (Huang et al. 2022), which
                compares the order and spacing of probabilities and suits teachers that are much stronger.
            temperature: Temperature of the answers of both, T; above 1, small probabilities count for more.
            answer_weight: Weight w_a of the loss between the answers.
            feature_weight: Weight w_f of the loss between the features; null for 0, and 1 for a teacher without a
                classifier.
            label_weight: Weight w_s of the loss of labels.
            classifier: All settings of `FineTuneClassifier`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**classifier)
        if self.task.target != "class":
            raise InputError(
                f"{type(self).__name__} is for one class of several, and target is {self.task.target!r}: give data "
                "with one class for each example"
            )
        if answer_loss not in get_args(AnswerLoss):
            raise InputError(f"answer_loss is {answer_loss!r}: give {' or '.join(get_args(AnswerLoss))}")
        check_positive(temperature=temperature)
        check_min(0, answer_weight=answer_weight, feature_weight=feature_weight, label_weight=label_weight)
        if not (label_weight or answer_weight):
            raise InputError(
                "label_weight and answer_weight are 0, so that the classifier would learn nothing: raise one of them"
            )
        if self.regularizer is not None and self.regularizer.needs_activations:
            raise InputError(
                f"regularizer {type(self.regularizer).__name__} looks at labeled examples alone, and the student sees "
                "others with them: set L2 or L2SP"
            )
        self.teacher_name, self.temperature = teacher, temperature
        self.answer_loss, self.answer_weight, self.label_weight = answer_loss, answer_weight, label_weight
        self.feature_weight = feature_weight or 0.0
        self._feature_weight_given = feature_weight
        self.projector: nn.Linear | None = None
        self._teacher: list[Teacher] = []  # in a list, which keeps it out of checkpoints and of DDP

    def setup(self, stage: str) -> None:
        """Load the teacher, and build the projection to its features.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            InputError: The teacher cannot teach this student.
        """
        if stage != "fit":
            return
        data = few_label_data(self.trainer)
        names = self.class_names if data is None else data.class_names
        spec = InputSpec.parse(self.hparams["input_spec"])
        ranges = None if data is None else data.value_ranges
        teacher = load_teacher(self.teacher_name, spec, names, needs_classes=False, value_ranges=ranges)
        if teacher.head is None:
            if not self.label_weight:
                raise InputError(
                    f"teacher {self.teacher_name!r} has no classifier and label_weight is 0, so that no class would be "
                    "learned: raise label_weight"
                )
            if self._feature_weight_given == 0:
                raise InputError(
                    f"teacher {self.teacher_name!r} has no classifier and feature_weight is 0, so that it would teach "
                    "nothing: raise feature_weight"
                )
            self.feature_weight = 1.0 if self._feature_weight_given is None else self._feature_weight_given
            what = "features alone, because it has no classifier"
        else:
            what = "answers" + (" and features" if self.feature_weight else "")
        self.projector = None
        if self.feature_weight:
            self.projector = nn.Linear(self.backbone.num_features, teacher.backbone.num_features)
        self._teacher = [teacher]
        counts = [sum(p.numel() for p in one.parameters()) for one in (teacher.backbone, self.backbone)]
        rank_zero_info(
            f"Teacher: {self.teacher_name} ({teacher.backbone.name}, {counts[0]:,} parameters; the student has "
            f"{counts[1]:,}) teaches {what}."
        )

    def on_fit_start(self) -> None:
        """Move the teacher to the device."""
        super().on_fit_start()
        for teacher in self._teacher:
            teacher.to(self.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the tensors, but for those of a projection where none is trained."""
        if self.projector is None:
            state_dict = {name: t for name, t in state_dict.items() if not name.startswith(self.fit_only)}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def groups(self) -> list[Group]:
        """Return the groups of the classifier, and that of the projection."""
        projector = [] if self.projector is None else [*self.projector.parameters()]
        return [*super().groups(), *([Group("projector", projector, 1.0)] if projector else [])]

    def step(self, batch: Any) -> StepResult:
        """Compute the weighted sum of the losses of labels, answers and features."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        x = concatenate_inputs([labeled.x, unlabeled.weak])
        answers = self._teacher[0](x)
        features: Tensor = self.backbone(x)
        logits = self.classify(features)
        logs: dict[str, Tensor] = {}
        loss = logits.new_zeros(())
        if self.label_weight:
            logs["label_loss"] = self._supervised(labeled.y, logits[: len(labeled.y)])
            loss = loss + self.label_weight * logs["label_loss"]
        if answers.logits is not None:
            logs["answer_loss"] = ANSWER_LOSSES[self.answer_loss](logits, answers.logits, self.temperature)
            logs["teacher_agreement"] = (logits.argmax(1) == answers.logits.argmax(1)).float().mean()
            loss = loss + self.answer_weight * logs["answer_loss"]
        if self.projector is not None:
            logs["feature_loss"] = compare_features(self.projector(features), answers.features)
            loss = loss + self.feature_weight * logs["feature_loss"]
        return StepResult(loss, logs)
