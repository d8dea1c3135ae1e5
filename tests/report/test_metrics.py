"""Numbers of a report match those computed by hand."""

import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sft_lightning.cli.loaded_run import sample_positions
from sft_lightning.data.audio.views import AudioView, SpectrogramViews
from sft_lightning.networks.audio.backbones import SpectrogramEncoder
from sft_lightning.networks.audio.log_mel import Sound
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.report.attention import GradCAM, compute_grad_cam, find_last_map
from sft_lightning.report.metrics import bin_reliability, choose_to_label, compute_calibration_error, project_pca
from sft_lightning.tasks.classification import Classification
from sft_lightning.tasks.classification_metrics import wilson


def by_hand(logits: torch.Tensor, y: torch.Tensor) -> float:
    """The expected calibration error, a loop over the bins."""
    p = logits.double().softmax(1).numpy()
    sure, right = p.max(1), p.argmax(1) == y.numpy()
    gaps = []
    for k in range(15):
        own = (sure > k / 15) & (sure <= (k + 1) / 15)
        gaps.append(own.mean() * abs(sure[own].mean() - right[own].mean()) if own.any() else 0.0)
    return float(sum(gaps))


def test_grad_cam_matches_a_network_by_hand() -> None:
    """The class weighs only the first of two averaged maps, so that the heatmap is that map."""
    conv = torch.nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backbone = Backbone("conv", net, 2, (1, 4, 4)).requires_grad_(False).eval()
    module = find_last_map(backbone)
    assert module is net[1]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :2] = 1.0
    x[0, 0, 2, 1] = 0.5
    head = {"weight": torch.tensor([[3.0, 1.0], [-1.0, 0.0]]), "bias": torch.zeros(2)}
    assert torch.equal(compute_grad_cam(backbone, head, module, x, torch.tensor([0]))[0], x[0, 0])
    assert torch.equal(compute_grad_cam(backbone, head, module, x, torch.tensor([1]))[0], torch.zeros(4, 4))


def test_evidence_lies_over_a_spectrogram_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    sound = Sound(8000, 1024, 256, 256, 4)
    backbone = SpectrogramEncoder("conv", net, 1, sound.spec.shape).requires_grad_(False).eval()
    x = torch.zeros(1, *sound.spec.shape)
    x[:, :, 0] = 0.8  # the lowest frequencies
    data = SimpleNamespace(
        inputs_of=lambda name, positions: x,
        views=SpectrogramViews(sound, AudioView(), AudioView()),
        splits={"test": SimpleNamespace(ids=["a.wav"])},
        input_spec=sound.spec,
    )
    head = {"weight": torch.ones(2, 1), "bias": torch.zeros(2)}
    evaluation: Any = SimpleNamespace(data=data, backbone=backbone, head=head, metadata={"backbone": "conv"})
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr("sft_lightning.report.attention.embed_image", lambda image, _: drawn.append(image))
    assert GradCAM(evaluation).reason_against is None
    GradCAM(evaluation).draw("test", [0], torch.tensor([0]))
    shown, evidence = drawn
    assert shown[0].sum(1).nonzero().flatten().tolist() == [3]  # the lowest row
    red = evidence[0] - evidence[2]
    assert red.sum(1).nonzero().flatten().tolist() == [3]
    data.input_spec = sound.as_waveform().spec
    assert "has no feature maps" in str(GradCAM(evaluation).reason_against)


@pytest.mark.parametrize(("correct", "count"), [(50, 100), (0, 10), (10, 10), (1, 3), (1379, 2000), (9999, 10000)])
def test_wilson_equals_the_formula(correct: int, count: int) -> None:
    share, z = correct / count, NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    expected = (max(0.0, middle - half), min(1.0, middle + half))
    assert wilson(share, count) == pytest.approx(expected, abs=1e-12)
    rounded = float(torch.tensor(share, dtype=torch.float32))  # as metrics give it
    assert wilson(rounded, count) == wilson(share, count)


def test_wilson_matches_published_intervals() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_calibration_error_matches_a_loop_over_the_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(500, 4, generator=generator) * 3, torch.randint(4, (500,), generator=generator)
    assert compute_calibration_error(logits, y) == pytest.approx(by_hand(logits, y), abs=1e-5)
    bins = bin_reliability(logits, y)
    assert sum(n for _, _, n in bins) == 500
    assert sum(n * abs(c - a) for c, a, n in bins) / 500 == pytest.approx(by_hand(logits, y), abs=1e-5)


def test_proposals_for_labeling_are_uncertain_and_diverse() -> None:
    features = torch.tensor([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0], [-1.0, 0.0]])
    logits = torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.2, 0.0], [9.0, 0.0]])
    entropy, known = Classification(2).uncertainty(logits), torch.tensor([[1.0, 0.02]])
    # Known is near a and b: c and d are far, and d is certain, but the pool is small enough to hold it.
    assert choose_to_label(entropy, features, known, 2) == [3, 2]
    # Of many only the most uncertain are looked at: d is the farthest, yet certain.
    many = entropy.repeat(10), features.repeat(10, 1)
    assert {i % 4 for i in choose_to_label(*many, known, 1)} == {1}
    assert {i % 4 for i in choose_to_label(*many, known, 3)} >= {2}


def test_pca_matches_the_covariance_and_the_svd() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.1, 2.0])
    coordinates, share = project_pca(x)
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)
    torch.testing.assert_close(coordinates.var(0), values[:2])
    torch.testing.assert_close(share, values[:2] / values.sum())
    assert project_pca(x[:, :1])[0].shape == (50, 2)
    wide = torch.randn(9, 40, generator=torch.Generator().manual_seed(1))
    coordinates, share = project_pca(wide)
    u, s, _ = torch.linalg.svd((wide - wide.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close(coordinates.abs(), (u * s)[:, :2].abs())
    torch.testing.assert_close(share, (s.square() / s.square().sum())[:2])


def test_sampled_positions_depend_on_the_seed() -> None:
    assert sample_positions(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_positions(1000, 10, 3).tolist()
    assert drawn == sorted({*drawn}) == sample_positions(1000, 10, 3).tolist()
    assert len(drawn) == 10
    assert drawn != sample_positions(1000, 10, 4).tolist()
