"""Compare losses on features with the formulas of the papers in plain loops and with values computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.features.center import Center
from sft_lightning.losses.features.cosine_prototype import CosinePrototype, build_simplex
from sft_lightning.losses.features.supcon import SupCon
from sft_lightning.utils.errors import InputError

FEATURES = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 3, 2, 1])  # class 3 has one example


def build(loss: Any, classes: int = 4, features: int = 5) -> Any:
    torch.manual_seed(0)
    loss.build(classes, features)
    return loss.double()


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()))


def test_cosine_loss_with_learnable_prototypes_equals_hand_computed_value() -> None:
    loss = build(CosinePrototype())
    with torch.no_grad():
        loss.prototypes.mul_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))  # the length must not count
    x = FEATURES.clone().requires_grad_()
    value = loss(x, LABELS)
    expected = [1 - cosine(FEATURES[i], loss.prototypes.detach()[y]) for i, y in enumerate(LABELS.tolist())]
    assert value.item() == pytest.approx(sum(expected) / 12)
    value.backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert float(loss.prototypes.grad.abs().sum()) > 0


def test_class_means_start_at_the_first_batch_and_move_with_momentum() -> None:
    loss = build(CosinePrototype("mean", momentum=0.75))
    unit = F.normalize(FEATURES, dim=1)
    before = loss.prototypes.clone()
    loss(FEATURES[:3], LABELS[:3])
    torch.testing.assert_close(loss.prototypes[:3], unit[:3])
    torch.testing.assert_close(loss.prototypes[3], before[3])  # class 3 was not seen
    loss(FEATURES[3:9], LABELS[3:9])
    mean = torch.stack([unit[[3, 6, 7]].mean(0), unit[[4, 8]].mean(0), unit[5]])
    torch.testing.assert_close(loss.prototypes[:3], 0.75 * unit[:3] + 0.25 * mean)
    kept = loss.prototypes.clone()
    loss.eval()(FEATURES, LABELS)
    assert torch.equal(loss.prototypes, kept)
    assert not list(loss.parameters())


@pytest.mark.parametrize(("classes", "features"), [(2, 1), (4, 3), (4, 5), (10, 128)])
def test_simplex_prototypes_have_equal_maximal_angles(classes: int, features: int) -> None:
    corners = build_simplex(classes, features, torch.Generator().manual_seed(1)).double()
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(corners @ corners.T, expected, atol=1e-6, rtol=0)
    other = build_simplex(classes, features, torch.Generator().manual_seed(2)).double()
    assert not torch.allclose(corners, other) or features == 1


def test_simplex_of_ten_classes_needs_nine_features() -> None:
    with pytest.raises(InputError, match="10 classes need 9 features and the backbone has 8"):
        CosinePrototype("simplex").build(10, 8)


def test_only_simplex_prototypes_and_supcon_separate_classes() -> None:
    assert [CosinePrototype(kind).separates_classes for kind in ("learnable", "mean", "simplex")] == [
        False,
        False,
        True,
    ]
    assert (SupCon().separates_classes, Center().separates_classes) == (True, False)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_supcon_loss_is_the_mean_of_equation_2_over_anchors(temperature: float) -> None:
    loss = build(SupCon(temperature, projection=0))
    z = FEATURES / FEATURES.norm(dim=1, keepdim=True)
    terms = []
    for i in range(12):
        others = [a for a in range(12) if a != i]
        positives = [p for p in others if LABELS[p] == LABELS[i]]
        if not positives:
            continue
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        terms.append(-sum(float(z[i] @ z[p]) / temperature - math.log(total) for p in positives) / len(positives))
    assert len(terms) == 11
    assert loss(FEATURES, LABELS).item() == pytest.approx(sum(terms) / 11)


def test_supcon_without_positive_pairs_is_zero_with_zero_gradient() -> None:
    x = FEATURES[:3].clone().requires_grad_()
    value = build(SupCon(projection=0))(x, torch.tensor([0, 1, 2]))
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_supcon_projects_and_trains_the_projection() -> None:
    loss = build(SupCon(projection=7))
    assert loss.project(FEATURES).shape == (12, 7)
    loss(FEATURES, LABELS).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in loss.parameters())


def test_centers_follow_the_rule_of_the_paper_after_the_loss() -> None:
    loss = build(Center(rate=0.5))
    loss.centers.copy_(torch.arange(20.0).view(4, 5) / 10)
    before = loss.centers.clone()
    x = FEATURES.clone().requires_grad_()
    value = loss(x, LABELS)
    value.backward()
    gaps = FEATURES - before[LABELS]
    assert value.item() == pytest.approx(float(gaps.square().sum() / 24))
    torch.testing.assert_close(x.grad, gaps / 12)
    for c in range(4):
        own = gaps[c == LABELS]
        torch.testing.assert_close(loss.centers[c], before[c] + 0.5 * own.sum(0) / (1 + len(own)))
    kept = loss.centers.clone()
    loss.eval()(FEATURES, LABELS)
    assert torch.equal(loss.centers, kept)
    assert "centers" in loss.state_dict()


@pytest.mark.parametrize("make", [CosinePrototype, lambda: CosinePrototype("mean"), SupCon, Center])
def test_losses_are_computed_in_full_precision_under_autocast(make: Any) -> None:
    loss, again = (build(make()).float() for _ in range(2))
    x = FEATURES.float()
    plain = loss(x, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = again(x, LABELS)
        assert again(x.bfloat16(), LABELS).dtype == torch.float32
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CosinePrototype(momentum=1.0), "momentum is 1.0"),
        (lambda: SupCon(temperature=0.0), "temperature is 0.0"),
        (lambda: SupCon(projection=-1), "projection is -1"),
        (lambda: Center(rate=1.5), "rate is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
