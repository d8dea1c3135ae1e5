"""Baselines for examples with masks: the most common class everywhere, and logistic regression of pixels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sft_lightning.classifiers import LogisticRegression
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.tasks.make_task import make_task
from sft_lightning.tasks.pixel_samples import sample_pixels

_MAX_PIXELS = 4_000  # of all masks
_COLORS = "pixels"  # name of the network whose maps are means of colors


def fit_common_class(data: FewLabelDataModule, by_example: bool = False) -> float:
    """Return the mean intersection over union of the test split where each pixel gets the class of most labeled pixels.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        by_example: Whether to return the mean of that of each example, as in folds.
    """
    common = int(data.labeled_counts().argmax())

    def predict(x: Any) -> Tensor:
        outputs = torch.zeros(len(x), data.num_classes, *x.shape[-2:])
        outputs[:, common] = 1
        return outputs

    return _measure(data, predict, torch.device("cpu"), by_example)


def fit_pixel_regression(data: FewLabelDataModule, backbone: Encoder | None = None, by_example: bool = False) -> float:
    """Train logistic regression of 4,000 pixels, and return the mean intersection over union of the test split.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        backbone: Frozen network without a decoder, whose maps side by side are the features, and which is changed in
            place; None for means of colors.
        by_example: Whether to return the mean of that of each example, as in folds.

    Raises:
        InputError: The network gives no maps, or the masks have pixels of fewer than two classes.
    """
    network = build_encoder(_COLORS, data.input_spec)[0] if backbone is None else backbone
    network.stack_maps()
    task, each = make_task(data.target, data.num_classes), max(1, _MAX_PIXELS // len(data.splits["labeled"]))
    sample = sample_pixels(network, data.batches_of("labeled", network.device), each, data.request.seed)
    classifier = LogisticRegression().fit(sample.x, sample.y, num_classes=data.num_classes)
    with eval_mode(network):
        return _measure(
            data, lambda x: task.apply_classifier(classifier, network(x).float().cpu()), network.device, by_example
        )


@torch.no_grad()
def _measure(
    data: FewLabelDataModule, predict: Callable[[Any], Tensor], device: torch.device, by_example: bool
) -> float:
    """Return the metric of the task on the test split, or the mean score of its examples."""
    task = make_task(data.target, data.num_classes)
    metrics: Any = task.build_metrics()
    scores: list[Tensor] = []
    for batch in data.batches_of("test", device):
        outputs, y = predict(batch.x), batch.y.cpu()
        scores.append(task.example_scores(outputs, y))
        metrics.update(outputs, y)
    return float(torch.cat(scores).mean()) if by_example else float(metrics.compute()[task.metric[0]])
