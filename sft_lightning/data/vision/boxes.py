"""Boxes of a batch as one tensor: how rows are padded, and how boxes follow their image.

Targets are float32, (B, M, 6): the number of the class, x1, y1, x2 and y2 in pixels of the network's image, and 1 where
evaluation ignores the object, else 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sft_lightning.data.vision.views import Moves
from sft_lightning.utils.transfer import to_device

PADDING = -1.0  # class of the rows that fill up the boxes of an image
UNKNOWN = -2.0  # class of all rows of an image without an annotation
FIELDS = 6
ROUNDING = 1 - 1e-4  # of the share of an object that has to be seen


def pad_boxes(boxes: Sequence[Tensor], rows: int | None = None) -> Tensor:
    """Return the boxes of several images as one tensor.

    Args:
        boxes: Rows of each image, (N, 6).
        rows: Number of rows M of each image; None for the most that one has, at least 1.

    Returns:
        float32, (B, M, 6), in which rows without an object have the class `PADDING`.
    """
    rows = max([1, *map(len, boxes)]) if rows is None else rows
    made = torch.zeros(len(boxes), rows, FIELDS)
    made[:, :, 0] = PADDING
    for target, own in zip(made, boxes, strict=True):
        target[: len(own)] = own
    return made


def mark_unknown(rows: int) -> Tensor:
    """Return the rows of an image without an annotation, float32, (M, 6).

    Args:
        rows: Number of rows M.
    """
    made = torch.zeros(rows, FIELDS)
    made[:, 0] = UNKNOWN
    return made


def find_annotated(y: Tensor) -> Tensor:
    """Return which images have an annotation, boolean, (B,).

    Args:
        y: Targets, (B, M, 6).
    """
    return y[:, 0, 0] != UNKNOWN


def trim_boxes(y: Tensor) -> Tensor:
    """Return targets without the rows that no image of the batch needs, (B, M, 6), M at least 1.

    Args:
        y: Targets in which objects come before padding, (B, M, 6).
    """
    count = int((y[:, :, 0] >= 0).sum(1).max()) if len(y) else 0
    return y[:, : max(1, count)]


def clip_boxes(y: Tensor, sides: Sequence[float], least: float, seen: Tensor | None = None) -> Tensor:
    """Clip boxes to an image, and drop those of which too little is in it.

    Args:
        y: Targets, (..., M, 6), whose boxes may reach beyond the image.
        sides: Height and width of the image in pixels.
        least: Smallest share of the area of an object that has to be in the image.
        seen: Share of each object that earlier clips have left, (..., M); None for all of it.

    Returns:
        Targets of the same shape, in which objects come first.
    """
    boxes, share = _clip(y[..., 1:5], sides)
    share = share if seen is None else share * seen
    is_object = y[..., 0] >= 0
    is_lost = is_object & ((share <= 0) | (share < least * ROUNDING))
    kept = torch.cat([y[..., :1], boxes * is_object[..., None], y[..., 5:]], -1)
    padding = torch.zeros(FIELDS, dtype=y.dtype, device=y.device)
    padding[0] = PADDING
    kept = torch.where((is_lost | (y[..., 0] == PADDING))[..., None], padding, kept)
    order = (kept[..., 0] == PADDING).to(torch.uint8).argsort(dim=-1, stable=True)
    return kept.gather(-2, order[..., None].expand_as(kept))


def _clip(boxes: Tensor, sides: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return boxes (..., 4) within an image, and the share of the area of each that is in it."""
    height, width = sides
    across, down = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    clipped = torch.stack([across, down], -1).flatten(-2)
    return clipped, compute_areas(clipped) / compute_areas(boxes).clamp(min=1e-12)


def compute_areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes; 0 for one without any.

    Args:
        boxes: Corners x1, y1, x2, y2, (..., 4).
    """
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def move_boxes(y: Tensor, moves: Moves, sides: Sequence[int], least: float) -> Tensor:
    """Move boxes like the pixels of their images.

    Args:
        y: Targets, (B, M, 6).
        moves: Movements of the images, without rotation and shear.
        sides: Height and width of the images in pixels.
        least: Smallest share of the area of a box that has to stay in the image.

    Returns:
        Targets of the same shape, in which objects come first.
    """
    height, width = sides
    boxes, seen = y[:, :, 1:5], torch.ones_like(y[:, :, 0])

    def move(across: Tensor, down: Tensor) -> None:
        # Clipped at once: what a movement pushes out of the image, a later one does not bring back.
        nonlocal boxes, seen
        boxes, share = _clip(torch.stack([across, down], -1).flatten(2), sides)
        seen = seen * share

    if moves.crop is not None:
        theta = to_device(moves.crop, y.device)
        move(
            _undo(boxes[:, :, 0::2], theta[:, 0, 0], theta[:, 0, 2], width),
            _undo(boxes[:, :, 1::2], theta[:, 1, 1], theta[:, 1, 2], height),
        )
    if moves.corner is not None:
        top, left = to_device(moves.pad - moves.corner, y.device)[:, :, None, None]
        move(boxes[:, :, 0::2] + left, boxes[:, :, 1::2] + top)
    if moves.flipped is not None:
        mirrored = to_device(moves.flipped, y.device)[:, None, None]
        move(torch.where(mirrored, width - boxes[:, :, 0::2].flip(-1), boxes[:, :, 0::2]), boxes[:, :, 1::2])
    if moves.source is not None:
        source = to_device(moves.source, y.device)
        move(
            _undo(boxes[:, :, 0::2], source[:, 0, 0], source[:, 0, 2] * 2 / width, width),
            _undo(boxes[:, :, 1::2], source[:, 1, 1], source[:, 1, 2] * 2 / height, height),
        )
    return clip_boxes(torch.cat([y[:, :, :1], boxes, y[:, :, 5:]], -1), sides, least, seen)


def _undo(places: Tensor, factor: Tensor, shift: Tensor, side: int) -> Tensor:
    """Return where places (B, M, 2) of an image are in the result of a map from the result to the image.

    The map is factor * place + shift, in units of half a side from the center.
    """
    units = 2 * places / side - 1
    return ((units - shift[:, None, None]) / factor[:, None, None] + 1) * side / 2
