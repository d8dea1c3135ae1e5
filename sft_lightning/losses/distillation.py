"""Losses between a student and its teacher on the same inputs.

Soft answers: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network". Relations: Huang et al. 2022,
"Knowledge Distillation from a Stronger Teacher" (DIST). Features: Romero et al. 2015, "FitNets", here of the last
layer.

Reference settings: temperature 1 to 20 for soft answers (4 on CIFAR-100 in most later work); DIST with weight 1 for
both relations and temperature 1 on ImageNet, weight 2 and temperature 4 on CIFAR-100.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

AnswerLoss = Literal["kl", "dist"]


def compare_answers(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(teacher || student) of the answers at temperature T, averaged over the batch.

    The factor T^2 keeps the gradients from falling with the temperature (section 2 of Hinton et al.).

    Args:
        student: Logits, (B, C).
        teacher: Logits of the same classes, (B, C).
        temperature: Temperature T, above 0.
    """
    wanted = (teacher.float() / temperature).log_softmax(1)
    given = (student.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def compare_relations(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute how far the relations of classes within an example, and of examples within a class, are apart.

    It is T^2 times the sum of both distances, each 1 - Pearson's correlation and averaged over the batch. A stronger
    teacher's probabilities are matched in their order and spacing alone, not in their values.

    Args:
        student: Logits, (B, C).
        teacher: Logits of the same classes, (B, C).
        temperature: Temperature T, above 0.
    """
    given = (student.float() / temperature).softmax(1)
    wanted = (teacher.float() / temperature).softmax(1)
    between = 1 - _correlate(given, wanted).mean()
    within = 1 - _correlate(given.T, wanted.T).mean()
    return temperature**2 * (between + within)


def _correlate(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of the rows of two matrices; 0 for rows that do not vary."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


def compare_features(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared distance of features of length 1, averaged over the batch.

    Args:
        student: Features, projected to those of the teacher, (B, F).
        teacher: Features, (B, F).
    """
    return (2 - 2 * F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


ANSWER_LOSSES = {"kl": compare_answers, "dist": compare_relations}
