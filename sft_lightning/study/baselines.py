"""Logistic regression on pixels or features, the baseline that every method must beat."""

import torch
from torch import Tensor

from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.loaders import EvalLoader, Stream
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.views import to_float
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.utils.errors import InputError

_MAX_VALUES = 500_000_000  # values of all images; more would not fit into the memory of a small machine


def fit_logistic_regression(data: ImageDataModule, strength: float = 1.0, backbone: Backbone | None = None) -> float:
    """Train scikit-learn's logistic regression on the labeled images and return its test accuracy.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        strength: Inverse of the L2 penalty (scikit-learn's C).
        backbone: Frozen network whose features to use, which are cached; None to use the pixels.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The images do not fit into memory as numbers, or some cannot be read.
    """
    from sklearn.linear_model import LogisticRegression

    if backbone is None:
        (x, y), (x_test, y_test) = (_read_pixels(data, name) for name in ("labeled", "test"))
    else:
        (x, y), (x_test, y_test) = (_extract_features(backbone, data, name) for name in ("labeled", "test"))
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)  # the penalty depends on the scale of the features
        x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    model = LogisticRegression(C=strength, max_iter=1000).fit(x.numpy(), y.numpy())
    return float(model.score(x_test.numpy(), y_test.numpy()))


def _extract_features(backbone: Backbone, data: ImageDataModule, name: str) -> tuple[Tensor, Tensor]:
    x = features(backbone, data, name)
    if x is None:
        raise InputError(f"source {data.source.name!r} has {name} images that cannot be read: repair or remove them")
    return x.float(), data.splits[name].labels


def _read_pixels(data: ImageDataModule, name: str) -> tuple[Tensor, Tensor]:
    split = data.splits[name]
    channels, height, width = data.image_shape
    if len(split) * channels * height * width > _MAX_VALUES:
        raise InputError(
            f"logistic regression on {len(split)} images of shape {data.image_shape} needs too much memory"
        )
    if isinstance(split.part.images, TensorStorage):
        images = split.part.images.data[split.indices]
    else:
        stream = Stream(split, BatchPlan(len(split), 256), data.geometry, bad=data.bad)
        batches = list(EvalLoader(stream))
        images = torch.cat([batch.images for batch in batches])
        index = torch.cat([batch.indices for batch in batches])
        return to_float(images, channels, height).flatten(1), split.labels[index]
    return to_float(images, channels, height).flatten(1), split.labels
