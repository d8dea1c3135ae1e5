"""Disk cache for features of a frozen backbone, which are computed only once."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from sft_lightning.data.contract import FewLabelData
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.runs.paths import LOGS
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.transfer import stream_to_cpu

FOLDER = Path(LOGS) / "features"
MOST = 4_000_000_000  # bytes of features per split; larger splits are computed in each epoch


def use_cache(trainer: Any, data: FewLabelData, backbone: Encoder) -> None:
    """Give the data module features in place of inputs, if training uses each example at least once.

    Args:
        trainer: Trainer that is about to fit.
        data: Data module after its setup.
        backbone: Backbone that training never changes.
    """
    steps, size = data.epoch_steps * (trainer.max_epochs or 1), data.batch_size * trainer.world_size
    if 0 <= steps * size < len(data.splits["labeled"]):
        return
    give_features(trainer, data, backbone, ("labeled", "val"))


def give_features(trainer: Any, data: FewLabelData, backbone: Encoder, names: Sequence[str]) -> None:
    """Give the data module features in place of the examples of some splits, as far as they are few enough.

    Args:
        trainer: Trainer that is about to fit.
        data: Data module after its setup.
        backbone: Backbone that training never changes.
        names: Names of the splits.
    """
    names = [n for n in names if worth_it(data, n, backbone.num_features) and (n != "val" or trainer.limit_val_batches)]
    made: dict[str, Tensor] = {}
    for first in (True, False):  # one process computes, then the others read
        if trainer.is_global_zero == first:
            for name in names:
                context = trainer.precision_plugin.forward_context()
                computed = features(
                    backbone, data, name, precision=str(trainer.precision), context=context, write=first
                )
                if computed is not None:
                    made[name] = computed.float()
        trainer.strategy.barrier()
    data.use_features(made)
    if made:
        rank_zero_info(f"The backbone is frozen: the features of {' and '.join(made)} are computed once and kept.")


def key(backbone: Encoder, data: FewLabelData, split: str, precision: str = "32-true") -> str:
    """Hash everything that features depend on: weights, normalization, examples, their order and size, precision.

    Args:
        backbone: Network that maps inputs to features.
        data: Data module after its setup.
        split: Name of the split.
        precision: Precision of the computation.
    """
    digest = hashlib.sha256(repr((backbone.describe(), precision, data.fingerprint(split))).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def features(
    backbone: Encoder,
    data: FewLabelData,
    split: str,
    folder: Path = FOLDER,
    precision: str = "32-true",
    context: AbstractContextManager[Any] | None = None,
    write: bool = True,
) -> Tensor | None:
    """Return the features of a split in its order, from the cache or computed and added to it.

    Args:
        backbone: Network that maps inputs to features; put into eval mode while it computes.
        data: Data module after its setup.
        split: Name of the split.
        folder: Folder of the cached features.
        precision: Precision of the computation; part of the key.
        context: Context manager around the forward pass, such as autocast.
        write: Whether to write computed features to the cache.

    Returns:
        Features on the CPU, (N, F); None where some examples cannot be read.
    """
    count = len(data.splits[split])
    path = folder / f"{key(backbone, data, split, precision)}.safetensors"
    if path.is_file():
        try:
            kept = read_weights(path)[0].get("features")
            if kept is None or kept.shape != (count, backbone.num_features) or not kept.is_floating_point():
                raise InputError(f"{str(path)!r} does not hold {count} x {backbone.num_features} features")
            if not kept.isfinite().all():
                raise InputError(f"{str(path)!r} holds features that are NaN or infinite")
            return kept
        except InputError as error:
            rank_zero_warn(f"Cached features are not used and are computed again: {error}")
    made: Tensor | None = None
    count_done = 0
    with eval_mode(backbone), context or nullcontext():
        batches = data.batches_of(split, backbone.device)
        for indices, rows in stream_to_cpu((batch.indices, backbone(batch.x)) for batch in batches):
            if made is None:
                made = rows.new_empty(count, rows.shape[1])
            made[indices] = rows
            count_done += len(rows)
    if made is None or count_done < count:
        return None
    if write and made.isfinite().all():
        write_weights(path, {"features": made}, {"split": split, **backbone.describe()})
    return made


def worth_it(data: FewLabelData, split: str, num_features: int) -> bool:
    """Return whether the features of a split are few enough to cache.

    Args:
        data: Data module after its setup.
        split: Name of the split.
        num_features: Number of features, F.
    """
    return 0 < 4 * len(data.splits[split]) * num_features <= MOST
