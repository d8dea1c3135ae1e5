"""Scores of examples that were held out in turn, with thresholds from the others."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_lightning.tasks.base import Task


def score_folds(task: Task, outputs: Tensor, targets: Tensor, fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how well each held-out example is predicted, 0 to 1, (N,).

    Where examples have several classes, the score is the F1 of the example. The threshold of a fold is the best one of
    the other folds, so that no label takes part in a choice that it is scored by.

    Args:
        task: Kind of target.
        outputs: Outputs of each example by a model that has not seen its fold, (N, C).
        targets: Targets, (N,) or (N, C).
        fold: Fold of each example, int64, (N,), from 0 on.
    """
    scores = np.zeros(len(targets))
    for k in range(int(fold.max()) + 1):
        held = torch.from_numpy(fold == k)
        limits = task.fit_shared_threshold(outputs[~held], targets[~held])
        scores[fold == k] = task.example_scores(outputs[held], targets[held], limits).numpy()
    return scores
