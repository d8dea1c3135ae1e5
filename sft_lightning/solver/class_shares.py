"""How classes are spread over the unlabeled examples, and what the labels of each class count for because of it.

Someone who labels the same number of examples of each class judges rare classes as much as frequent ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sft_lightning.classifiers.logistic_regression import make_logistic_regression
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.space import Space

_LEAST = 100  # unlabeled examples whose shares of classes mean something
_UNEVEN = 0.25  # share of the unlabeled examples that would have to change class to be spread like the labels


@dataclass(frozen=True)
class ClassShares:
    """Shares of the classes, each with a sum of 1.

    Attributes:
        labeled: Shares among the labeled examples, float64, (C,).
        unlabeled: Shares among the unlabeled examples, as a classifier predicts them, float64, (C,).
    """

    labeled: Tensor
    unlabeled: Tensor

    @property
    def is_uneven(self) -> bool:
        """Whether a quarter of the unlabeled examples would have to change class to be spread like the labels."""
        return float((self.unlabeled - self.labeled).clamp_min(0).sum()) >= _UNEVEN

    def weigh(self, labels: Tensor) -> np.ndarray:
        """Return the weight of each labeled example: the share of its class over that among these labels, (N,).

        Args:
            labels: Classes of the examples, int64, (N,).
        """
        counts = labels.bincount(minlength=len(self.unlabeled)).double()
        weights: np.ndarray = (len(labels) * self.unlabeled / counts.clamp_min(1))[labels].numpy()
        return weights

    def describe(self, source: LabeledSource) -> str:
        """Return what that means in a sentence.

        Args:
            source: Source with the names of the classes.
        """
        k, plural = int((self.unlabeled - self.labeled).argmax()), source.data.input_spec.plural
        return (
            f"Of the unlabeled {plural}, {self.unlabeled[k]:.0%} look like {source.data.class_names[k]}, of the labels "
            f"{self.labeled[k]:.0%} are: labels count as much as their class is frequent among the former."
        )


def predict_shares(space: Space, source: LabeledSource) -> ClassShares | None:
    """Predict the class of each unlabeled example by logistic regression, and count them; None where that says little.

    What labels count then was measured by `scripts/bench/choice_rules.py`.

    Args:
        space: Vectors of all examples.
        source: Source with the labels.
    """
    if source.task.has_thresholds or len(space.pool) < _LEAST:
        return None
    classes = source.data.num_classes
    classifier = make_logistic_regression(space.has_counts).fit(space.labeled, source.labels, num_classes=classes)
    found = torch.cat([classifier.predict(x) for x in space.pool.split(4096)]).bincount(minlength=classes)
    counts = source.labels.bincount(minlength=classes).double()
    found = found.double() + (counts > 0)  # a class that seems absent counts a little
    return ClassShares(counts / counts.sum(), found / found.sum())
