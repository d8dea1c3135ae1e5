"""Heads that start as a classifier fitted to the features of the labels, without gradient steps.

Fine-tuning from such a head is LP-FT without its first stage: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution".
"""

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.classifiers import LinearClassifier, LogisticRegression, NearestClassMean, Ridge
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.labeled_features import compute_labeled_features
from sft_lightning.utils.errors import InputError

HeadStart = Literal["random", "logistic_regression", "ridge", "nearest_class_mean"]
_CLASSIFIERS: dict[str, type[LinearClassifier]] = {
    "logistic_regression": LogisticRegression,
    "ridge": Ridge,
    "nearest_class_mean": NearestClassMean,
}
_MAX_EXAMPLES = 10_000  # whose features fit into memory; classes take turns


@torch.no_grad()
def fit_head(head: nn.Linear, kind: str, features: Tensor, labels: Tensor) -> None:
    """Set a head to a classifier of features.

    Args:
        head: Layer that is changed in place.
        kind: Classifier to fit: `logistic_regression`, `ridge` or `nearest_class_mean`.
        features: Features, (N, F).
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C), each of which gets
            a classifier of its own.

    Raises:
        InputError: All labels are of one class, or a feature is not finite.
    """
    fitted = _CLASSIFIERS[kind]().fit(features, labels, num_classes=head.out_features)
    head.weight.copy_(fitted.weight)
    head.bias.copy_(fitted.bias)


def start_head(head: nn.Linear, backbone: Encoder, kind: HeadStart, module: LightningModule, head_weights: str) -> bool:
    """Set a head to a classifier of the labeled examples' features, unless training resumes.

    Args:
        head: Layer that is changed in place.
        backbone: Network that gives the features, as it is at the start.
        kind: Classifier to fit, or `random` to leave the head as it is.
        module: Module that is about to be trained.
        head_weights: Setting `head_weights`, which must be `none` for a fitted head.

    Returns:
        Whether the head was changed.

    Raises:
        InputError: The head has weights of its own, the data gives no labels, or they are of one class.
    """
    if kind == "random" or module.trainer.ckpt_path is not None:
        return False
    if head_weights != "none":
        raise InputError(
            f"head_start is {kind!r}, but head_weights {head_weights!r} gives a head: leave one of the two out"
        )
    with torch.no_grad():
        labeled = compute_labeled_features(module, backbone, _MAX_EXAMPLES)
    if labeled is None:
        raise InputError(
            f"head_start is {kind!r}, but the data gives no labeled examples as they are: add labels, or set it to "
            "random"
        )
    fit_head(head, kind, *labeled)
    rank_zero_info(f"The head starts as {kind.replace('_', ' ')} on the features of {len(labeled[1])} labels.")
    return True
