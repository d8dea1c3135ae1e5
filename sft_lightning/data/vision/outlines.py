"""Masks that are drawn from outlines of objects: polygons, and the run lengths of COCO."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Shape:
    """An object of one class.

    Attributes:
        number: Number of its class.
        rings: Polygons that cover it, each x1, y1, x2, y2, ..., in pixels or in shares of the image's sides.
        runs: Run lengths that cover it, column by column, beginning with pixels outside; empty for polygons.
    """

    number: int
    rings: "tuple[array[float], ...]" = ()
    runs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outlines:
    """Objects of one image. Pixels without an object are background.

    Attributes:
        shapes: Objects, in any order.
        background: Number of the class of all other pixels.
        sides: Width and height in pixels that the annotation states; None where polygons are shares of the sides.
        problem: Why the annotation cannot be used; empty if it can.
    """

    shapes: tuple[Shape, ...]
    background: int = 0
    sides: tuple[int, int] | None = None
    problem: str = ""

    def draw(self, width: int, height: int) -> Mask:
        """Draw the mask, int16, (height, width): large objects first, so that small ones on them stay visible.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.

        Raises:
            OSError: Run lengths do not fit the sides.
        """
        scale = (1.0, 1.0) if self.sides is not None else (float(width), float(height))
        areas = []
        for shape in self.shapes:
            inside = np.zeros((height, width), dtype=bool)
            for ring in shape.rings:
                inside |= fill_polygon(np.reshape(ring, (-1, 2)) * scale, width, height)
            if shape.runs:
                inside |= _expand_runs(shape.runs, width, height)
            areas.append((int(inside.sum()), shape.number, inside))
        mask = np.full((height, width), self.background, dtype=np.int16)
        for _, number, inside in sorted(areas, key=lambda one: -one[0]):
            mask[inside] = number
        return mask


def fill_polygon(points: npt.NDArray[np.float64], width: int, height: int) -> npt.NDArray[np.bool_]:
    """Return the pixels whose center lies in a polygon, by the even-odd rule, (height, width).

    Args:
        points: Corners x, y in pixels, (N, 2); the first pixel reaches from 0 to 1.
        width: Width in pixels.
        height: Height in pixels.
    """
    inside = np.zeros((height, width), dtype=bool)
    first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (points[:, 1].min(), points[:, 1].max()))
    if first >= last:
        return inside
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, 0).T
    centers = np.arange(first, last)[:, None] + 0.5
    rows, edges = np.nonzero((y0 <= centers) != (y1 <= centers))
    crossings = x0[edges] + (centers[rows, 0] - y0[edges]) / (y1[edges] - y0[edges]) * (x1[edges] - x0[edges])
    begins = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
    toggles = np.zeros((last - first, width + 1), dtype=np.int64)
    np.add.at(toggles, (rows, begins), 1)
    inside[first:last] = toggles[:, :-1].cumsum(1) % 2 == 1
    return inside


def _expand_runs(runs: Sequence[int], width: int, height: int) -> npt.NDArray[np.bool_]:
    if sum(runs) != width * height:
        raise OSError(f"its run lengths cover {sum(runs):,} pixels, and the image has {width * height:,}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decode_runs(text: str) -> list[int]:
    """Decode compressed run lengths of COCO: numbers of 5 bits a character, most as the change since the one but last.

    Args:
        text: `counts` of a segmentation.

    Raises:
        ValueError: The text ends within a number, or has a character that none has.
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, goes_on = 0, 0, True
        while goes_on:
            if place >= len(text) or not 0 <= (bits := ord(text[place]) - 48) < 64:
                raise ValueError("its compressed run lengths are damaged")
            value |= (bits & 31) << shift
            goes_on, shift, place = bool(bits & 32), shift + 5, place + 1
            if not goes_on and bits & 16:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if min(runs, default=0) < 0:
        raise ValueError("its compressed run lengths are damaged")
    return runs
