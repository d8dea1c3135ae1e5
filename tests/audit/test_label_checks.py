"""Which labels are doubted, by hand and on a few real images."""

import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_lightning.audit import label_checks
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.image_stats import ImageSplitStats, compute_image_stats
from sft_lightning.data.vision.images import Geometry
from tests.doubles import make_image_checks


def test_confident_learning_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    first = np.array([0.9, 0.8, 0.2, 0.1, 0.3, 0.9, 0.5, 0.48])
    p = np.stack([first, 1 - first], 1)
    # Sure of class 0 from 0.595 on, of class 1 from 0.55 on: the last two are sure of none.
    assert label_checks.apply_confident_learning(y, p) == [5, 2]
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    assert label_checks.find_suspects(y, p) == ([5, 2], "confident learning")


def test_no_label_is_judged_by_a_classifier_that_saw_its_group() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 80)).astype(np.float32), draw.integers(0, 2, 60)  # nothing but noise to learn
    twice, labels_twice = x.repeat(2, 0), y.repeat(2)

    def right(p: Any, y: Any) -> float:
        return float((p.argmax(1) == y).mean())

    assert right(label_checks.predict_out_of_fold(x, y, None, 0), y) < 0.7
    assert right(label_checks.predict_out_of_fold(twice, labels_twice, None, 0), labels_twice) > 0.8
    groups = [str(k // 2) for k in range(120)]
    assert right(label_checks.predict_out_of_fold(twice, labels_twice, groups, 0), labels_twice) < 0.7


def test_a_wrong_label_among_real_images_is_found(
    fashion: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = fashion
    names = ["boot", "trouser", "bag"]
    of = {name: (truth == c).nonzero()[:, 0] for name, c in zip(names, (9, 1, 8), strict=True)}

    def seen(name: str, counts: dict[str, int], groups: list[str] | None = None, begin: int = 0) -> ImageSplitStats:
        rows = torch.cat([of[kind][begin : begin + count] for kind, count in counts.items()])
        y = torch.tensor([names.index(kind) for kind, count in counts.items() for _ in range(count)])
        part = Examples(TensorStorage(images[rows][:, None]), [f"{name} {k}" for k in range(len(rows))], y, groups)
        return compute_image_stats(name, Split(part, list(range(len(rows)))), Geometry(channels=1))

    labeled = seen("labeled", {"boot": 12, "trouser": 8, "bag": 3})
    labeled.split.part.labels[2] = 1  # a boot
    labeled.split.part.labels[3] = -1
    test = seen("test", {"trouser": 4, "bag": 1}, [f"patient {k}" for k in range(5)], begin=20)
    asked: list[Any] = []
    own = label_checks.predict_out_of_fold

    def watched(x: Any, y: Any, groups: Any, seed: int) -> Any:
        asked.append(groups)
        return own(x, y, groups, seed)

    monkeypatch.setattr(label_checks, "predict_out_of_fold", watched)
    data = make_image_checks(3)
    judged = label_checks.check_labels([test, labeled, seen("unlabeled", {"bag": 9}, begin=30)], data, None, 0)
    assert [one.id(i) for one, i in judged.examples] == [
        *(f"test {k}" for k in range(4)), *(f"labeled {k}" for k in range(20) if k != 3),
    ]  # fmt: skip
    assert asked == [[*(f"patient {k}" for k in range(4)), *(f"labeled {k}" for k in range(20) if k != 3)]]
    assert judged.summary.startswith("23 looked at with ")
    assert judged.summary.endswith(
        "logistic regression on the pixels is right in 95.7%; left out for fewer than 5 labels: 1 of 3 classes"
    )
    (row,) = label_checks.make_result(judged, names).rows
    assert row[:2] == ("labeled", "labeled 2")
    assert row.detail.startswith("'trouser', looks like 'boot', p 0.0")
    # Sure enough to be doubted, though the label is still the likeliest.
    unsure = replace(judged, suspects=[0], probabilities=np.array([[0.1, 0.5, 0.4]]), labels=np.array([1]))
    assert label_checks.make_result(unsure, names).rows[0].detail == "'trouser', looks like 'bag', p 0.50 and 0.40"
    five = label_checks.check_labels([seen("labeled", {"boot": 5, "trouser": 5})], data, None, 0)
    assert len(five.examples) == 10
    assert five.is_decided
    few = label_checks.check_labels([seen("labeled", {"boot": 4, "trouser": 4})], data, None, 0)
    assert not few.is_decided


@pytest.mark.parametrize(
    ("right", "count", "guess", "is_skilled"),
    [
        (102, 293, 0.25, False),
        (75, 100, 0.5, True),
        (74, 100, 0.5, False),
        (94, 100, 0.9, False),
        (96, 100, 0.9, True),
        (9, 10, 0.5, True),
        (8, 10, 0.5, False),  # what a coin gives in 5.5 % of all cases
    ],
)
def test_a_classifier_doubts_labels_from_half_the_errors_of_a_guess_on(
    right: int, count: int, guess: float, is_skilled: bool
) -> None:
    assert label_checks.is_skilled(right, count, guess) == is_skilled


def test_a_weak_classifier_says_so_and_doubts_no_label(fashion: tuple[Tensor, Tensor]) -> None:
    images, truth = fashion
    rows = torch.isin(truth, torch.tensor([2, 4, 6])).nonzero()[:120, 0]  # pullovers, coats and shirts
    y = torch.tensor([{2: 0, 4: 1, 6: 2}[c] for c in truth[rows].tolist()])
    y[::3] = y[::3].roll(1)

    def judged(y: Tensor) -> label_checks.LabelCheck:
        part = Examples(TensorStorage(images[rows][:, None]), [str(k) for k in rows.tolist()], y)
        seen = compute_image_stats("labeled", Split(part, list(range(len(rows)))), Geometry(channels=1))
        return label_checks.check_labels([seen], make_image_checks(3), None, 0)

    weak = judged(y)
    assert weak.suspects == []
    assert not weak.is_decided
    assert re.fullmatch(
        r"none is judged: logistic regression on the pixels is right in \d\d\.\d% of 120, where the most "
        r"frequent class alone is \d\d\.\d%: too weak to doubt a label; set model.init_args.weights to those of a "
        r"pre-trained backbone",
        weak.summary,
    )
    assert len(weak.examples) == 120
