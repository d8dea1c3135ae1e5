"""Heads that start as a classifier fitted to the features of the labels, without gradient steps.

Fine-tuning from such a head is LP-FT without its first stage: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution".
"""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.classifiers import LinearClassifier, LogisticRegression, NearestClassMean, Ridge
from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.errors import InputError

HeadStart = Literal["random", "logistic_regression", "ridge", "nearest_class_mean"]
_CLASSIFIERS: dict[str, type[LinearClassifier]] = {
    "logistic_regression": LogisticRegression,
    "ridge": Ridge,
    "nearest_class_mean": NearestClassMean,
}
_MAX_EXAMPLES = 10_000  # whose features fit into memory; classes take turns


def start_head(head: nn.Linear, backbone: Encoder, kind: HeadStart, trainer: Any, head_weights: str) -> bool:
    """Set a head to a classifier of the labeled examples' features, unless training resumes.

    Args:
        head: Layer that is changed in place.
        backbone: Network that gives the features, as it is at the start.
        kind: Classifier to fit, or `random` to leave the head as it is.
        trainer: Trainer that is about to fit.
        head_weights: Setting `head_weights`, which must be `none` for a fitted head.

    Returns:
        Whether the head was changed.

    Raises:
        InputError: The head has weights of its own, the data gives no labels, or they are of one class.
    """
    if kind == "random" or trainer.ckpt_path is not None:
        return False
    if head_weights != "none":
        raise InputError(
            f"head_start is {kind!r}, but head_weights {head_weights!r} gives a head: leave one of the two out"
        )
    data = few_label_data(trainer)
    if data is None or not len(data.splits["labeled"]):
        raise InputError(
            f"head_start is {kind!r}, but the data gives no labeled examples as they are: add labels, or set it to "
            "random"
        )
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.no_grad(), eval_mode(backbone), trainer.precision_plugin.forward_context():
        for batch in data.labeled_batches(_MAX_EXAMPLES, backbone.device):
            features.append(backbone(batch.x).float().cpu())
            labels.append(batch.y.cpu())
    fitted = _CLASSIFIERS[kind]().fit(torch.cat(features), torch.cat(labels), num_classes=head.out_features)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    rank_zero_info(f"The head starts as {kind.replace('_', ' ')} on the features of {sum(map(len, labels))} labels.")
    return True
