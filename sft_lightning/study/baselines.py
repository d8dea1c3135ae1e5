"""Logistic regression on pixels or features, the baseline that every method must beat."""

import math

import torch
from torch import Tensor

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.utils.errors import InputError

STARTS = "its start"  # stands for the features of the weights that a method starts from
_MAX_VALUES = 500_000_000  # numbers of all examples; more would not fit into the memory of a small machine


def fit_logistic_regression(data: FewLabelDataModule, strength: float = 1.0, backbone: Encoder | None = None) -> float:
    """Train scikit-learn's logistic regression on the labeled examples and return its test accuracy.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        strength: Inverse of the L2 penalty (scikit-learn's C).
        backbone: Frozen network whose features to use, which are cached; None for the inputs themselves.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The examples do not fit into memory as numbers, or some cannot be read.
    """
    from sklearn.linear_model import LogisticRegression

    if backbone is None:
        (x, y), (x_test, y_test) = (_read_vectors(data, name) for name in ("labeled", "test"))
    else:
        (x, y), (x_test, y_test) = (_extract_features(backbone, data, name) for name in ("labeled", "test"))
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)  # the penalty depends on the scale of the features
        x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    model = LogisticRegression(C=strength, max_iter=1000).fit(x.numpy(), y.numpy())
    return float(model.score(x_test.numpy(), y_test.numpy()))


def _extract_features(backbone: Encoder, data: FewLabelDataModule, name: str) -> tuple[Tensor, Tensor]:
    x = features(backbone, data, name)
    if x is None:
        raise InputError(f"source {data.source.name!r} has {name} examples that cannot be read: repair or remove them")
    return x.float(), data.splits[name].labels


def _read_vectors(data: FewLabelDataModule, name: str) -> tuple[Tensor, Tensor]:
    split, shape = data.splits[name], data.input_spec.shape
    if len(split) * math.prod(shape) > _MAX_VALUES:
        raise InputError(f"logistic regression on {len(split)} inputs of shape {shape} needs too much memory")
    pairs = [(data.views.flatten(batch.x), batch.y) for batch in data.batches_of(name, torch.device("cpu"))]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
