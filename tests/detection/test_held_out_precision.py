"""Average precision by folds and by draws of examples: COCO's on one fold, and that of copies for weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_lightning.detection.held_out_precision import (
    MatchedExamples,
    join_folds,
    match_examples,
    measure_precision,
    rank_scores,
)
from sft_lightning.detection.metrics import measure

CLASSES = 3


def draw_boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    corner = draw.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + draw.uniform(6, 24, (count, 2))], 1)


def draw_examples(seed: int, count: int, crowds: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Objects, of which some are ignored, and detections: moved objects, doubled ones, others, and equal scores."""
    draw = np.random.default_rng(seed)
    found, true = torch.full((count, 12, 6), -1.0), []
    for i in range(count):
        boxes = draw_boxes(draw, int(draw.integers(0, 5)))
        kinds, ignored = draw.integers(0, CLASSES, len(boxes)), draw.random(len(boxes)) < 0.25 * crowds
        true.append(torch.from_numpy(np.concatenate([kinds[:, None], boxes, ignored[:, None]], 1)).float())
        near = np.repeat(boxes, 2, 0) + draw.normal(0, 1.5, (2 * len(boxes), 4))
        other = draw_boxes(draw, 3)
        every = np.concatenate([near, other])[:12]
        named = np.concatenate([np.repeat(kinds, 2), draw.integers(0, CLASSES, 3)])[:12]
        scores = draw.integers(1, 20, len(every)) / 20
        rows = np.concatenate([named[:, None], every, scores[:, None]], 1)
        found[i, : len(rows)] = torch.from_numpy(rows).float()
    return found, true


def measure_by_coco(found: Tensor, true: list[Tensor], chosen: list[int]) -> float:
    """The metric of validation, with the examples in the order of `chosen`, each as often as it is there."""
    rows, objects = [], []
    for place, i in enumerate(chosen):
        own = found[i][found[i][:, 0] >= 0].double()
        rows.append(torch.cat([torch.full((len(own), 1), float(place)), own[:, [0, 5, 1, 2, 3, 4]]], 1))
        y = true[i].double()
        objects.append(torch.cat([torch.full((len(y), 1), float(place)), y[:, [0, 5, 1, 2, 3, 4]]], 1))
    positions = torch.arange(len(chosen), dtype=torch.float64)
    return float(measure(positions, torch.cat(rows), torch.cat(objects))["map"])


@pytest.mark.parametrize("seed", range(4))
def test_one_fold_is_measured_as_coco_does(seed: int) -> None:
    found, true = draw_examples(seed, 12)
    matched = match_examples(found, true, CLASSES)
    (value,) = measure_precision(matched, np.ones((1, 12)), range(CLASSES))
    ranked = rank_scores(matched, np.zeros(12, int))
    assert value == measure_precision(ranked, np.ones((1, 12)), range(CLASSES))
    assert 0.1 < value < 0.9
    assert value == pytest.approx(measure_by_coco(found, true, [*range(12)]), abs=1e-6)


def test_a_weight_counts_as_copies_of_an_example() -> None:
    found, true = draw_examples(7, 10)
    found[:, :, 5] += torch.arange(120).view(10, 12) * 1e-4  # no equal scores, between which their order decides
    drawn = np.random.default_rng(0).multinomial(10, [0.1] * 10, 3)
    matched = match_examples(found, true, CLASSES)
    values = measure_precision(matched, drawn, range(CLASSES))
    for value, counts in zip(values, drawn, strict=True):
        copies = [i for i, count in enumerate(counts.tolist()) for _ in range(count)]
        assert value == pytest.approx(measure_by_coco(found, true, copies), abs=1e-6)
    assert len({*values.round(6)}) == 3


def test_scores_of_two_folds_are_not_compared_with_each_other() -> None:
    """Detectors of two folds that rank the same, one with scores ten times as high: pooled, they would look worse."""
    found, true = draw_examples(3, 8, crowds=False)
    twice, folds, once = torch.cat([found, found]), np.repeat([0, 1], 8), np.ones((1, 16))
    alike = rank_scores(match_examples(twice, [*true, *true], CLASSES), folds)
    expected = measure_precision(alike, once, range(CLASSES))
    assert expected == pytest.approx(
        measure_precision(match_examples(found, true, CLASSES), once[:, :8], range(CLASSES))
    )
    twice[8:, :, 5] *= 10.0
    matched = match_examples(twice, [*true, *true], CLASSES)
    assert measure_precision(rank_scores(matched, folds), once, range(CLASSES)) == pytest.approx(expected)
    assert measure_precision(matched, once, range(CLASSES))[0] < expected[0] - 1e-3


def test_a_rank_counts_for_each_example_of_its_fold() -> None:
    scores, every = np.array([0.3, 0.9, 0.2, 0.1]), np.ones((10, 4), bool)
    matched = MatchedExamples(np.array([0, 1, 2, 2]), np.zeros(4, int), scores, every, every, np.ones((3, 1), int))
    assert rank_scores(matched, np.array([0, 0, 1])).score.tolist() == [-0.75, -0.25, -0.5, -1.5]


def test_each_fold_has_the_detections_of_its_detector() -> None:
    found, true = draw_examples(5, 9)
    other, folds = torch.full_like(found, -1.0), np.arange(9) % 3
    ours, nothing = (match_examples(one, true, CLASSES) for one in (found, other))
    expected = found.clone()
    expected[folds == 1] = -1
    joined = join_folds([ours, nothing, ours], folds)
    for one, wanted in zip(joined, match_examples(expected, true, CLASSES), strict=True):
        assert (one == wanted).all()


def test_classes_count_alike_where_a_draw_has_an_object_of_them() -> None:
    """Class 0: one of three objects is found; class 1: its only one; class 2 has no object."""
    true = [
        torch.tensor([[0, 0, 0, 10, 10, 0.0]]),
        torch.tensor([[0, 0, 0, 9, 9, 0.0], [0, 20, 20, 29, 29, 0.0]]),
        torch.tensor([[1, 20, 20, 30, 30, 0.0]]),
    ]
    found = torch.full((3, 2, 6), -1.0)
    found[0, 0] = torch.tensor([0, 0, 0, 10, 10, 0.9])
    found[2, 0] = torch.tensor([1, 20, 20, 30, 30, 0.9])
    matched = match_examples(found, true, CLASSES)
    third = 34 / 101  # of the recalls, at a precision of 1
    draws = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    expected = [(third + 1) / 2, third, 1, 0, 0]
    assert measure_precision(matched, draws, range(CLASSES)) == pytest.approx(expected)
    assert measure_precision(matched, draws[:1], [0]) == pytest.approx([third])


def test_without_a_detection_or_an_object_it_is_zero() -> None:
    found, true = draw_examples(1, 4)
    nothing = match_examples(torch.full((4, 0, 6), -1.0), true, CLASSES)
    assert measure_precision(nothing, np.ones((2, 4)), range(CLASSES)).tolist() == [0, 0]
    empty = match_examples(found, [one[:0] for one in true], CLASSES)
    assert measure_precision(empty, np.ones((1, 4)), range(CLASSES)).tolist() == [0]
