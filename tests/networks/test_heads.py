import pytest
import torch
from torch.nn import functional as F

from sft_lightning.networks.heads import fit_class_means, normalize_tau

G = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(40, 6, generator=G), torch.randint(4, (40,), generator=G)


def test_nearest_class_mean_predicts_the_class_of_the_nearest_mean() -> None:
    weight, bias = fit_class_means(FEATURES, LABELS, 4)
    new = torch.randn(100, 6, generator=G)
    means = torch.stack([FEATURES[c == LABELS].mean(0) for c in range(4)])
    cosines = F.cosine_similarity(new[:, None], means, dim=2)
    assert torch.equal(F.linear(new, weight, bias).argmax(1), cosines.argmax(1))
    assert weight.norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_class_without_examples_is_never_predicted() -> None:
    weight, bias = fit_class_means(FEATURES, LABELS, 6)
    logits = F.linear(1e3 * torch.randn(100, 6, generator=G), weight, bias)
    assert int(logits.argmax(1).max()) < 4
    assert bool(logits.half().isfinite().all())


def test_tau_normalization_divides_weights_by_a_power_of_their_norm() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    assert torch.equal(normalize_tau(weight, 0.0), weight)
    assert normalize_tau(weight, 1.0)[:2].norm(dim=1).tolist() == [1, 1]
    half = normalize_tau(weight, 0.5)
    torch.testing.assert_close(half[:2].norm(dim=1), torch.tensor([5.0, 2.0]).sqrt())
    assert torch.equal(half[2], weight[2])
