"""Some pixels of examples with masks, for what takes vectors and their classes: classifiers and scores of features."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
def sample_pixels(network: Encoder, batches: Iterable[Labeled], each: int, seed: int) -> PixelSample:
    """Draw counted pixels of each example, those at the centers of the cells of the network's map.

    Each class of an example gives as many pixels as it can, up to an equal part, since in the mean intersection over
    union a small class counts as much as a large one. Which ones depends on the seed and the position of the example
    alone, not on its batch or the network.

    Args:
        network: Frozen network whose features are maps, (B, F, h, w).
        batches: Examples without random changes, with their masks.
        each: Number of pixels of an example, at most.
        seed: Seed of the draw.

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
                chosen = _draw(own, each, generator)
                x = rows[:, chosen.to(rows.device)].T.cpu()
                found.append((x, own[chosen], torch.full((len(chosen),), position)))
    if not sum(len(y) for _, y, _ in found):
        raise InputError("the masks have no pixel that counts: give masks with pixels of at least two classes")
    found.sort(key=lambda one: int(one[2][0]) if len(one[2]) else -1)
    x, y, examples = (torch.cat(part) for part in zip(*found, strict=True))
    return PixelSample(x, y, examples)


def _draw(classes: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Return the positions of at most `each` counted pixels of one example, (S,), the classes in turn."""
    order = torch.randperm(len(classes), generator=generator)
    order = order[classes[order] >= 0]
    if not len(order):
        return order
    hot = F.one_hot(classes[order])
    turn = (hot.cumsum(0) * hot).sum(1)  # 1 for the first pixel of its class, 2 for the second, and so on
    return order[turn.argsort(stable=True)][:each]
