"""Masks of large images, from overlapping squares that are predicted one by one and joined."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.vision.images import cut_out

_OVERLAP = 0.25  # of neighboring squares, at least
_EDGE = 0.05  # weight of a square's outermost pixels, of which the network sees one side alone


def place_tiles(length: int, tile: int) -> list[int]:
    """Return where squares begin along a side, at equal distances; a side that is shorter than one is in its middle.

    Args:
        length: Length of the side of an image in pixels.
        tile: Side of a square in pixels.
    """
    if length <= tile:
        return [(length - tile) // 2]
    count = math.ceil((length - tile) / ((1 - _OVERLAP) * tile)) + 1
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def classify_tiles(
    compute: Callable[[Tensor], Tensor],
    image: Image.Image,
    tile: int,
    size: int,
    background: tuple[int, int, int],
    batch_size: int,
) -> tuple[npt.NDArray[np.int16], float]:
    """Return the class of each pixel of an image, and the mean probability of these classes.

    Probabilities of overlapping squares are averaged with weights that fall toward the edges of a square. Only the
    squares of one row are in memory.

    Args:
        compute: Function from uint8 images (B, C, S, S) to logits on the CPU, (B, K, S, S).
        image: Gray or RGB image.
        tile: Side of a square in pixels of the image.
        size: Side S in pixels at which the network sees a square.
        background: Color beyond the image.
        batch_size: Number of squares that the network sees at once.

    Returns:
        Classes, int16, (height, width), and the mean probability.
    """
    width, height = image.size
    rows, columns = place_tiles(height, tile), place_tiles(width, tile)
    hat = (1 - (2 * (torch.arange(tile) + 0.5) / tile - 1).abs()).clamp_min(_EDGE)
    window = hat[:, None] * hat
    mask, certainty, base = np.empty((height, width), dtype=np.int16), 0.0, 0
    total, weight = torch.empty(0), torch.zeros(0, width)
    for number, top in enumerate(rows):
        bottom = min(height, top + tile)
        added = bottom - base - len(weight)
        weight = torch.cat([weight, torch.zeros(added, width)])
        for some in torch.tensor(columns).split(batch_size):
            boxes = [(left, top, left + tile, top + tile) for left in some.tolist()]
            logits = compute(torch.stack([cut_out(image, size, box, background) for box in boxes]))
            if total.shape[-2:] != weight.shape:
                blank = torch.zeros(logits.shape[1], added, width)
                total = torch.cat([total, blank], 1) if total.ndim == 3 else blank
            for own, (left, _, right, _) in zip(logits, boxes, strict=True):
                p = F.interpolate(own[None], (tile, tile), mode="bilinear", align_corners=False)[0].softmax(0)
                y, x = slice(max(0, top) - base, bottom - base), slice(max(0, left), min(width, right))
                inner = slice(max(0, top) - top, bottom - top), slice(x.start - left, x.stop - left)
                total[:, y, x] += p[:, *inner] * window[inner]
                weight[y, x] += window[inner]
        final = (rows[number + 1] if number + 1 < len(rows) else height) - base  # rows that no other square covers
        best, predicted = (total[:, :final] / weight[:final]).max(0)
        mask[base : base + final] = predicted.to(torch.int16).numpy()
        certainty += float(best.double().sum())
        total, weight, base = total[:, final:], weight[final:], base + final
    return mask, certainty / mask.size
