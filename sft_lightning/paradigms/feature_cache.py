"""Disk cache for features of a frozen backbone, which are computed only once."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from sft_lightning.data.contract import FewLabelData
from sft_lightning.data.splits import Split
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.runs.paths import LOGS
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.transfer import stream_to_cpu

FOLDER = Path(LOGS) / "features"
MOST = 4_000_000_000  # bytes of features per split and of a file; larger splits are computed in each epoch
_MISSING = "missing"  # name of the split whose features are computed


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
    """Hash everything that the features of a split depend on: those of a network, examples and their order and size.

    Args:
        backbone: Network that maps inputs to features.
        data: Data module after its setup.
        split: Name of the split.
        precision: Precision of the computation.
    """
    return hashlib.sha256(f"{hash_network(backbone, precision)} {data.fingerprint(split)}".encode()).hexdigest()


def hash_network(backbone: Encoder, precision: str = "32-true") -> str:
    """Hash what the features of an example depend on beside the example: architecture, weights, precision.

    Args:
        backbone: Network that maps inputs to features.
        precision: Precision of the computation.
    """
    digest = hashlib.sha256(repr((backbone.describe(), precision)).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Kept(NamedTuple):
    """Features in a file.

    Attributes:
        digests: Fingerprints of the examples, uint8, (N, 32).
        features: Their features, (N, F).
    """

    digests: Tensor
    features: Tensor

    def find_rows(self) -> dict[bytes, int]:
        """Return the row of each example, by its fingerprint."""
        return {row.tobytes(): i for i, row in enumerate(self.digests.numpy())}


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

    Each network has one file, with the features of each example under its fingerprint: another split of the same
    examples, such as a fold or one with further labels, computes only what is new. How examples are grouped into
    batches may change the last bits of what is computed.

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
    path = folder / f"{hash_network(backbone, precision)}.safetensors"
    digests = data.fingerprints(split)
    kept = _read(path, backbone.num_features)
    rows = {} if kept is None else kept.find_rows()
    new = {digest: i for i, digest in reversed([*enumerate(digests)]) if digest not in rows}
    if new:
        computed = _compute(backbone, data, split, sorted(new.values()), context)
        if computed is None:
            return None
        added = [digests[i] for i in sorted(new.values())]
        fresh = _Kept(torch.frombuffer(bytearray(b"".join(added)), dtype=torch.uint8).view(-1, 32), computed)
        if kept is None:
            whole = fresh
        else:
            whole = _Kept(torch.cat([kept.digests, fresh.digests]), torch.cat([kept.features.to(computed), computed]))
        rows |= {digest: len(rows) + i for i, digest in enumerate(added)}
        if write and computed.isfinite().all():
            fits = 4 * whole.features.numel() <= MOST
            stored = whole if fits else _Kept(whole.digests[-len(added) :], computed)
            write_weights(path, stored._asdict(), backbone.describe())
        kept = whole
    assert kept is not None
    return kept.features[[rows[digest] for digest in digests]]


def count_kept(backbone: Encoder, data: FewLabelData, splits: Sequence[str], folder: Path = FOLDER) -> int:
    """Return for how many examples of some splits the cache holds the features of a network.

    Args:
        backbone: Network that maps inputs to features.
        data: Data module after its setup.
        splits: Names of the splits.
        folder: Folder of the cached features.
    """
    kept = _read(folder / f"{hash_network(backbone)}.safetensors", backbone.num_features)
    if kept is None:
        return 0
    rows = kept.find_rows()
    return sum(digest in rows for name in splits for digest in data.fingerprints(name))


def _read(path: Path, num_features: int) -> _Kept | None:
    """Read a file of features, if there is a sound one."""
    if not path.is_file():
        return None
    try:
        tensors = read_weights(path)[0]
        digests, made = tensors.get("digests"), tensors.get("features")
        if digests is None or digests.dtype != torch.uint8 or digests.ndim != 2 or digests.shape[1] != 32:
            raise InputError(f"{str(path)!r} does not say of which examples its features are")
        if made is None or made.shape != (len(digests), num_features) or not made.is_floating_point():
            raise InputError(f"{str(path)!r} does not hold {len(digests)} x {num_features} features")
        if not made.isfinite().all():
            raise InputError(f"{str(path)!r} holds features that are NaN or infinite")
    except InputError as error:
        rank_zero_warn(f"Cached features are not used and are computed again: {error}")
        return None
    return _Kept(digests, made)


@torch.no_grad()
def _compute(
    backbone: Encoder,
    data: FewLabelData,
    split: str,
    positions: list[int],
    context: AbstractContextManager[Any] | None,
) -> Tensor | None:
    """Compute the features of some examples of a split, (len(positions), F); None where one cannot be read."""
    whole = data.splits[split]
    name = split if len(positions) == len(whole) else _MISSING
    data.splits[name] = Split(whole.part, [whole.indices[i] for i in positions])
    made: Tensor | None = None
    count_done = 0
    try:
        with eval_mode(backbone), context or nullcontext():
            batches = data.batches_of(name, backbone.device)
            for indices, rows in stream_to_cpu((batch.indices, backbone(batch.x)) for batch in batches):
                if made is None:
                    made = rows.new_empty(len(positions), rows.shape[1])
                made[indices] = rows
                count_done += len(rows)
    finally:
        data.splits[split] = whole
        data.splits.pop(_MISSING, None)
    return made if count_done == len(positions) else None


def worth_it(data: FewLabelData, split: str, num_features: int) -> bool:
    """Return whether the features of a split are few enough to cache.

    Args:
        data: Data module after its setup.
        split: Name of the split.
        num_features: Number of features, F.
    """
    return 0 < 4 * len(data.splits[split]) * num_features <= MOST
