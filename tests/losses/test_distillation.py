"""Losses between student and teacher."""

import pytest
import torch
from torch import Tensor

from sft_lightning.losses.distillation import compare_answers, compare_features, compare_relations


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_answers_are_compared_by_their_divergence() -> None:
    student, teacher = draw(6, 4), draw(6, 4).flip(0)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert compare_answers(student, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert compare_answers(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-6)
    # As the temperature rises, gradients keep their size: (z - z_t) / C of centered logits (section 2.1 of Hinton).
    first, second = ((x - x.mean(1, keepdim=True)).requires_grad_() for x in (student, teacher))
    compare_answers(first, second, 1000.0).backward()
    assert first.grad is not None
    assert torch.allclose(first.grad, ((first - second) / 4 / 6).detach(), atol=1e-4)


def test_relations_are_compared_by_correlation() -> None:
    student, teacher = draw(5, 3), draw(5, 3).flip(0)
    p, q = teacher.softmax(1), student.softmax(1)
    between = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q, strict=True)])
    within = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = (1 - between.mean()) + (1 - within.mean())
    assert compare_relations(student, teacher, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    # Probabilities of the same order and spacing are as good as equal ones.
    closer = (0.5 * p + 0.5 / 3).log()
    assert compare_relations(closer, teacher, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert compare_answers(closer, teacher, 1.0) > 0.01


def test_features_are_compared_by_their_direction() -> None:
    a, b = draw(7, 5), draw(7, 5).flip(0)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (a, b)]
    expected = (unit[0] - unit[1]).square().sum(1).mean()
    assert compare_features(a, b).item() == pytest.approx(expected.item(), rel=1e-5)
    assert compare_features(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
