"""Pixels of masks as vectors with a class each, so that scores of features rank starts for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.encoder import Encoder
from sft_lightning.tasks.pixel_samples import sample_pixels
from sft_lightning.transfer.folds import FoldPlan
from sft_lightning.utils.errors import InputError

_MAX_PIXELS = 1_000  # of all masks: more of one mask say little that its others do not


class MaskVectors(NamedTuple):
    """Features and classes of some pixels.

    Attributes:
        x: Features, float32, (S, F).
        y: Classes, int64, (S,).
        groups: Group of the mask of each pixel, so that pixels of one mask stay in one fold.
        distinct: Positions of the pixels of masks without repeated copies.
    """

    x: Tensor
    y: Tensor
    groups: list[str]
    distinct: list[int]


def sample_vectors(backbone: Encoder, data: FewLabelDataModule, plan: FoldPlan) -> MaskVectors:
    """Draw pixels of all masks, of the classes that have a mask for each fold.

    Args:
        backbone: Network without a decoder, whose maps side by side are the features, and which is changed in place.
        data: Data module after `setup`.
        plan: Folds and groups of the masks.

    Raises:
        InputError: The network gives no maps.
    """
    backbone.stack_maps()
    each = max(1, _MAX_PIXELS // len(data.splits["labeled"]))
    batches = data.batches_of("labeled", backbone.device)
    sample = sample_pixels(backbone, batches, each, data.request.seed)
    kept = torch.isin(sample.y, torch.tensor(list_ranked_classes(data, plan)))
    examples = sample.examples[kept].tolist()
    of_distinct = {*plan.distinct}
    return MaskVectors(
        sample.x[kept],
        sample.y[kept],
        [plan.joined[i] for i in examples],
        [k for k, i in enumerate(examples) if i in of_distinct],
    )


def list_ranked_classes(data: FewLabelDataModule, plan: FoldPlan) -> list[int]:
    """Return the classes with pixels in the masks of as many groups as there are folds.

    Args:
        data: Data module after `setup`.
        plan: Folds and groups of the masks.

    Raises:
        InputError: There are fewer than two.
    """
    memberships = data.labeled_memberships()
    assert memberships is not None
    groups = [{plan.joined[i] for i in own.nonzero()[:, 0].tolist()} for own in memberships.T]
    kept = [k for k, own in enumerate(groups) if len(own) >= plan.folds]
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} class(es) have pixels in {plan.folds} masks or more, one for each fold, and 2 are needed: "
            "add masks, or set fewer folds"
        )
    return kept
