"""Scores of examples that were held out in turn."""

import numpy as np
import pytest
import torch

from sft_lightning.tasks.classification import Classification
from sft_lightning.tasks.held_out import score_folds
from sft_lightning.tasks.multi_label import MultiLabel


def test_the_threshold_of_a_fold_comes_from_the_others_alone() -> None:
    """Half of the probabilities are lower by 0.3: each half is judged by the threshold of the other."""
    targets = torch.eye(3, dtype=torch.int64).repeat(8, 1)
    fold = np.repeat([0, 1], 12)
    p = torch.where(targets > 0, 0.6, 0.4)
    p[12:] -= 0.3
    task = MultiLabel(3)
    scores = score_folds(task, task.invert_probabilities(p), targets, fold)
    assert scores[:12] == pytest.approx(0.5)  # all three classes are predicted
    assert scores[12:] == pytest.approx(0)  # none is


def test_one_class_of_several_needs_no_threshold() -> None:
    task, y = Classification(3), torch.tensor([0, 1, 2, 0])
    outputs = task.invert_probabilities(torch.tensor([[0.8, 0.1, 0.1], [0, 1, 0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]))
    assert score_folds(task, outputs, y, np.array([0, 0, 1, 1])).tolist() == [1, 1, 0, 1]
