"""Average precision against a plain implementation of COCO's definition, and which detections are right."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from sft_lightning.detection import metrics
from sft_lightning.detection.base import Detections
from sft_lightning.detection.matching import Matches, choose_threshold, count_matches, match_objects
from sft_lightning.detection.metrics import DetectionMetrics
from sft_lightning.utils.errors import InputError

CLASSES = 4
Floats = npt.NDArray[np.float64]


def draw(count: int = 12, seed: int = 0) -> tuple[Detections, Tensor]:
    """Objects and detections near them, with misses, doubles, wrong classes, equal scores and ignored objects."""
    made = torch.Generator().manual_seed(seed)
    y = torch.zeros(count, 7, 6)
    y[..., 0] = torch.randint(-1, CLASSES - 1, (count, 7), generator=made)  # the last class has no object
    corners = torch.rand(count, 7, 2, generator=made) * 40
    y[..., 1:3], y[..., 3:5] = corners, corners + 6 + torch.rand(count, 7, 2, generator=made) * 18
    y[..., 5] = (torch.rand(count, 7, generator=made) < 0.15).float()
    y[0, :, 0] = -1  # annotated, without an object
    y[1] = torch.tensor([-2.0, 0, 0, 0, 0, 0])  # not annotated
    boxes = y[..., 1:5].repeat(1, 3, 1) + torch.randn(count, 21, 4, generator=made) * 1.2
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    scores = (torch.rand(count, 21, generator=made) * 20).round() / 20
    classes = y[..., 0].long().repeat(1, 3)
    wrong = torch.rand(count, 21, generator=made) < 0.2
    classes = torch.where(wrong, torch.randint(0, CLASSES, (count, 21), generator=made), classes)
    classes[torch.rand(count, 21, generator=made) < 0.2] = -1
    classes[classes < 0] = -1
    return Detections(boxes, scores * (classes >= 0), classes), y


def overlap(a: Floats, b: Floats, is_crowd: bool) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    first, second = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return float(w / (first if is_crowd else first + second - w))


def average_precision(found: Detections, y: Tensor, kind: int, iou: float) -> tuple[float, float]:
    """AP of a class at one IoU and its highest recall, read off at 101 recalls; NaN without an object."""
    rows: list[tuple[float, bool]] = []
    total = 0
    for k in range(len(y)):
        if float(y[k, 0, 0]) == -2:
            continue
        true = [one for one in y[k].double().numpy() if one[0] == kind]
        true.sort(key=lambda one: one[5])
        total += sum(one[5] == 0 for one in true)
        own = [(float(found.scores[k, j]), found.boxes[k, j].double().numpy())
               for j in range(found.classes.shape[1]) if int(found.classes[k, j]) == kind]  # fmt: skip
        own.sort(key=lambda one: -one[0])  # stable
        taken: set[int] = set()
        for score, box in own[:100]:
            best, chosen = iou - 1e-10, -1
            for m, one in enumerate(true):
                if m in taken and not one[5]:
                    continue
                if chosen >= 0 and not true[chosen][5] and one[5]:
                    break  # an object that counts is better than an ignored one
                if (value := overlap(box, one[1:5], bool(one[5]))) >= best:
                    best, chosen = value, m
            if chosen >= 0:
                taken.add(chosen)
            if chosen < 0 or not true[chosen][5]:
                rows.append((score, chosen >= 0))
    if not total:
        return float("nan"), float("nan")
    rows.sort(key=lambda one: -one[0])
    right = np.cumsum([one[1] for one in rows])
    precision = right / np.arange(1, len(rows) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = right / total
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    values = [precision[i] if i < len(precision) else 0.0 for i in at]
    return float(np.mean(values)), float(recall[-1]) if len(recall) else 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_a_plain_implementation(seed: int) -> None:
    found, y = draw(seed=seed)
    measured = DetectionMetrics()
    for rows in torch.arange(12).split(5):
        measured.update(Detections(*(one[rows] for one in found)), y[rows], rows)
    values = {name: float(value) for name, value in measured.compute().items()}
    ious = np.linspace(0.5, 0.95, 10)
    table = np.array([[average_precision(found, y, kind, iou) for iou in ious] for kind in range(CLASSES)])
    assert np.isnan(table[-1]).all()
    assert 0.1 < np.nanmean(table) < 0.9
    assert values["map"] == pytest.approx(np.nanmean(table[..., 0]), abs=1e-6)
    assert values["map50"] == pytest.approx(np.nanmean(table[:, 0, 0]), abs=1e-6)
    assert values["map75"] == pytest.approx(np.nanmean(table[:, 5, 0]), abs=1e-6)
    assert values["recall"] == pytest.approx(np.nanmean(table[..., 1]), abs=1e-6)
    for kind in range(CLASSES - 1):
        assert values[f"ap_{kind}"] == pytest.approx(table[kind, :, 0].mean(), abs=1e-6)
    assert "ap_3" not in values
    assert set(measured.compute()) == {"map", "map50", "map75", "recall"}  # starts anew


def test_the_order_of_batches_changes_nothing() -> None:
    found, y = draw()
    values = []
    for order in (torch.arange(12), torch.arange(12).flip(0)):
        measured = DetectionMetrics()
        for rows in order.split(4):
            measured.update(Detections(*(one[rows] for one in found)), y[rows], rows)
        values.append({name: float(value) for name, value in measured.compute().items()})
    assert values[0] == values[1]


def test_metrics_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    found, y = draw()
    measured = DetectionMetrics()
    measured.update(found, y, torch.arange(12))
    with pytest.raises(InputError, match=r"needs faster-coco-eval: pip install 'sft-lightning\[detection\]'"):
        measured.compute()


def test_the_surest_detection_of_an_object_is_right() -> None:
    y = torch.tensor([[1.0, 0, 0, 10, 10, 1], [0, 0, 0, 10, 10, 0], [0, 20, 20, 40, 40, 0], [-1, 0, 0, 0, 0, 0]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 40, 29], [0, 0, 9, 9]])
    scores, classes = torch.tensor([0.5, 0.9, 0.8, 0.95, 0.0]), torch.tensor([0, 0, 1, 0, -1])
    one = match_objects(boxes, scores, classes, y)
    # The box of class 1 lies on an ignored object; 0.95 overlaps too little; 0.5 comes too late.
    assert one.scores.tolist() == pytest.approx([0.95, 0.9, 0.5])
    assert one.is_right.tolist() == [False, True, False]
    assert one.true.tolist() == [0, 0]
    assert one.object_scores.tolist() == pytest.approx([0.9, -1])
    counts = count_matches([one, one], 0.6)
    assert (counts.right, counts.found, counts.true) == (2, 4, 4)
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 0.5, 0.5)
    assert count_matches([one], 0.6, 1) == (0, 0, 0)
    empty = match_objects(boxes[:0], scores[:0], classes[:0], y[:0])
    assert count_matches([empty], 0.5).f1 == 1
    assert choose_threshold([empty]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_largest_f1(seed: int) -> None:
    found, y = draw(seed=seed)
    matches = [match_objects(found.boxes[k], found.scores[k], found.classes[k], y[k]) for k in range(12)]
    every = sorted({float(s) for one in matches for s in one.scores})
    f1 = {score: count_matches(matches, score).f1 for score in every}
    chosen = choose_threshold(matches)
    assert f1[chosen] == pytest.approx(max(f1.values()))
    assert all(a < b for a, b in pairwise(every))
    by_class = [count_matches(matches, chosen, kind) for kind in range(CLASSES)]
    whole: Any = count_matches(matches, chosen)
    assert tuple(map(sum, zip(*by_class, strict=True))) == tuple(whole)
    assert isinstance(matches[0], Matches)
