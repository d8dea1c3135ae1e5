"""Some pixels of examples with masks, for what takes vectors and their classes: classifiers and scores of features."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sft_lightning.data.batches import Labeled
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.errors import InputError


class PixelSample(NamedTuple):
    """Features and classes of some pixels.

    Attributes:
        x: Features, float32, (S, F), on the CPU.
        y: Classes, int64, (S,).
        examples: Position of the example of each pixel, int64, (S,), ascending.
    """

    x: Tensor
    y: Tensor
    examples: Tensor


@torch.no_grad()
def sample_pixels(
    network: Encoder, batches: Iterable[Labeled], each: int, seed: int, is_balanced: bool = False
) -> PixelSample:
    """Draw counted pixels of each example, those at the centers of the cells of the network's map.

    Which ones depends on the seed and the position of the example alone, not on its batch or the network.

    Args:
        network: Frozen network whose features are maps, (B, F, h, w).
        batches: Examples without random changes, with their masks.
        each: Number of pixels of an example, at most.
        seed: Seed of the draw.
        is_balanced: Whether each class of an example gives as many of its pixels as it can, instead of its share.

    Raises:
        InputError: No mask has a counted pixel.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with eval_mode(network):
        for batch in batches:
            maps = network(batch.x).float()
            stride = batch.y.shape[-1] // maps.shape[-1]
            classes = batch.y[:, stride // 2 :: stride, stride // 2 :: stride].flatten(1).cpu()
            for position, own, rows in zip(batch.indices.tolist(), classes, maps.flatten(2), strict=True):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
                chosen = _draw(own, each, generator, is_balanced)
                x = rows[:, chosen.to(rows.device)].T.cpu()
                found.append((x, own[chosen], torch.full((len(chosen),), position)))
    if not sum(len(y) for _, y, _ in found):
        raise InputError("the masks have no pixel that counts: give masks with pixels of at least two classes")
    found.sort(key=lambda one: int(one[2][0]) if len(one[2]) else -1)
    x, y, examples = (torch.cat(part) for part in zip(*found, strict=True))
    return PixelSample(x, y, examples)


def _draw(classes: Tensor, each: int, generator: torch.Generator, is_balanced: bool) -> Tensor:
    """Return the positions of at most `each` counted pixels of one example, (S,)."""
    order = torch.randperm(len(classes), generator=generator)
    order = order[classes[order] >= 0]
    if is_balanced and len(order):  # the first pixel of each class, then the second of each, and so on
        hot = torch.nn.functional.one_hot(classes[order])
        rank = (hot.cumsum(0) * hot).sum(1)
        order = order[rank.argsort(stable=True)]
    return order[:each]
