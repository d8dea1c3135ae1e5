"""Intervals of the mean average precision: its value is COCO's, draws count images, and intervals hold the truth."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import (
    average_classes,
    bootstrap_map,
    collect_matches,
    compare_maps,
    draw_examples,
    measure_map,
)
from sft_lightning.detection.metrics import DetectionMetrics
from tests.conftest import ROOT
from tests.detection.test_metrics import draw

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from map_interval_rates import draw_detectors


def split(found: Detections, y: Tensor) -> tuple[list[Detections], list[Tensor]]:
    """Annotated images one by one."""
    kept = [k for k in range(len(y)) if float(y[k, 0, 0]) != -2]
    return [Detections(*(part[k] for part in found)) for k in kept], [y[k] for k in kept]


def measure(found: list[Detections], targets: list[Tensor]) -> float:
    metrics = DetectionMetrics()
    for k, (one, y) in enumerate(zip(found, targets, strict=True)):
        metrics.update(Detections(*(part[None] for part in one)), y[None], torch.tensor([k]))
    return float(metrics.compute()["map"])


@pytest.mark.parametrize("seed", range(4))
def test_the_value_is_that_of_the_metric(seed: int) -> None:
    found, targets = split(*draw(seed=seed))
    records = collect_matches(found, targets)
    assert measure_map(records) == pytest.approx(measure(found, targets), abs=1e-6)
    # A draw is a set of images, some of them taken several times; equal scores of different images aside.
    made = torch.Generator().manual_seed(seed)
    unlike = [one._replace(scores=one.scores * (1 - 0.01 * torch.rand(len(one.scores), generator=made)))
              for one in found]  # fmt: skip
    times = np.array([[k % 3 for k in range(len(targets))]], dtype=float)
    taken = [k for k in range(len(targets)) for _ in range(k % 3)]
    expected = measure([unlike[k] for k in taken], [targets[k] for k in taken])
    assert average_classes(collect_matches(unlike, targets), times)[0] == pytest.approx(expected, abs=1e-6)


def test_detections_beyond_the_first_hundred_of_a_class_do_not_count() -> None:
    y = torch.tensor([[0.0, 0, 0, 10, 10, 0], [1, 20, 20, 40, 40, 0]])
    boxes = torch.cat([torch.tensor([50.0, 50, 60, 60]).expand(100, 4), y[:, 1:5]])
    classes = torch.cat([torch.zeros(101), torch.ones(1)]).long()
    found = [Detections(boxes, torch.linspace(0.9, 0.1, 102), classes)]
    assert measure_map(collect_matches(found, [y])) == pytest.approx(measure(found, [y])) == 0.5


def test_intervals_hold_the_truth() -> None:
    """95% intervals of 60 simulated test splits, of one detector and of the lead of a better one."""
    truth = [measure_map(one) for one in draw_detectors(10_000, 0.5, 0.4, np.random.default_rng(1))]
    made = np.random.default_rng(0)
    held = led = 0
    for seed in range(60):
        better, other = draw_detectors(40, 0.5, 0.4, made)
        low, high = bootstrap_map(other, 100, seed)
        lead = compare_maps(better, other, 100, seed)
        held += low <= truth[1] <= high
        led += lead.low <= truth[0] - truth[1] <= lead.high
        assert lead.low < lead.difference < lead.high
        assert 0 < high - low < 0.4
    assert 52 <= held <= 60
    assert 52 <= led <= 60


def test_two_detectors_are_compared_on_the_same_draws() -> None:
    better, other = draw_detectors(60, 0.5, 1.0, np.random.default_rng(2))
    same = compare_maps(other, other)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    ahead, behind = compare_maps(better, other, seed=3), compare_maps(other, better, seed=3)
    assert ahead.p_value < 0.01 < 0.9 < behind.p_value
    assert (ahead.difference, ahead.low, ahead.high) == pytest.approx((-behind.difference, -behind.high, -behind.low))
    assert ahead.low > 0
    # Images of one draw differ by much more than the two detectors on them do.
    low, high = bootstrap_map(better, seed=3)
    assert ahead.high - ahead.low < 0.8 * 2**0.5 * (high - low)
    with pytest.raises(ValueError, match="examples with other objects"):
        compare_maps(better, draw_detectors(60, 0.5, 1.0, np.random.default_rng(4))[0])


def test_images_of_a_group_are_drawn_together() -> None:
    groups = ["b", "a", "b", "c"]
    times = draw_examples(4, 50, 0, groups)
    assert np.array_equal(times[:, 0], times[:, 2])
    assert set(times[:, [1, 2, 3]].sum(1)) == {3}
    assert np.array_equal(draw_examples(4, 50, 0, None).sum(1), np.full(50, 4))
    records, _ = draw_detectors(40, 0.5, 0.0, np.random.default_rng(2))
    wide, narrow = (bootstrap_map(records, groups=g) for g in ([str(k // 10) for k in range(40)], None))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    assert bootstrap_map(records, groups=["a"] * 40) == (0, 1)


def test_images_without_an_object_have_no_precision() -> None:
    found, targets = split(*draw(seed=0))
    empty = [y[:0] for y in targets]
    records = collect_matches(found, empty)
    assert measure_map(records) == 0
    assert bootstrap_map(records) == (0, 1)
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()) for _ in targets]
    assert measure_map(collect_matches(nothing, targets)) == 0
