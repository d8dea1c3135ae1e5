"""Thresholds from which unlabeled examples get as many boxes of a class as annotated ones have."""

import pytest
import torch
from torch import Tensor

from sft_lightning.detection.base import Detections
from sft_lightning.detection.label_match import LabelMatch
from tests.detection.test_semi_supervised_detector import batch, make


def detections(seed: int, sharpness: float = 1.0) -> Detections:
    """Return detections of 8 examples and 3 classes, the last of which is never sure."""
    made = torch.Generator().manual_seed(seed)
    classes = torch.randint(-1, 3, (8, 20), generator=made)
    scores = torch.rand(8, 20, generator=made) ** sharpness * torch.where(classes == 2, 0.3, 1.0)
    return Detections(torch.rand(8, 20, 4, generator=made), scores, classes)


def targets(*classes: list[int]) -> Tensor:
    y = torch.zeros(len(classes), 3, 6)
    y[:, :, 0] = -1
    for row, own in zip(y, classes, strict=True):
        row[: len(own), 0] = torch.tensor(own)
    return y


@pytest.mark.parametrize("sharpness", [0.3, 3.0])  # of a sure teacher, and of one in doubt
def test_a_class_gets_as_many_boxes_as_annotated_examples_have(sharpness: float) -> None:
    match = LabelMatch(4)
    match.count_objects(targets([0, 0, 2], [2, 2, 1], [], [0]))  # 3, 1, 3 and 0 objects in 4 examples
    for seed in range(60):
        match.count_scores(detections(seed, sharpness))
    thresholds = match.find_thresholds()
    assert float(thresholds[3]) > 1  # never seen
    kept = torch.zeros(3)
    for seed in range(100, 160):
        found = detections(seed, sharpness)
        for k in range(3):
            kept[k] += ((found.classes == k) & (found.scores >= thresholds[k])).sum()
    torch.testing.assert_close(kept / 60 / 8, torch.tensor([0.75, 0.25, 0.75]), rtol=0.15, atol=0.0)


def test_thresholds_follow_the_teacher() -> None:
    match = LabelMatch(3)
    match.count_objects(targets([0, 1, 2]))
    for seed in range(60):
        match.count_scores(detections(seed, 3.0))
    before = match.find_thresholds()
    for seed in range(60):
        match.count_scores(detections(seed, 0.3))
    assert (match.find_thresholds() > before).all()


def test_objects_that_evaluation_ignores_do_not_count() -> None:
    match, y = LabelMatch(2), targets([0, 1], [0])
    y[0, 0, 5] = 1
    match.count_objects(y)
    assert match.objects.tolist() == [1, 1, 2]


def test_a_step_counts_both_parts() -> None:
    model, given = make(max_detections=7).train(), batch()
    assert model.label_match is not None
    model.step({"labeled": given["labeled"]})  # before the teacher teaches
    assert model.label_match.objects.tolist() == [1, 2, 2]
    assert float(model.label_match.scores[-1]) == 0
    model.step(given)
    assert model.label_match.objects.tolist() == [2, 4, 4]
    assert float(model.label_match.scores[-1]) == 2
    pseudo, _ = model.find_pseudo_boxes(given["unlabeled"].weak)
    counts = [int((pseudo[..., 0] == k).sum()) for k in range(2)]
    assert counts[0] <= 1  # as many as in two annotated examples, however low the scores
    assert counts[1] <= 2
    assert make(threshold=0.5).label_match is None
