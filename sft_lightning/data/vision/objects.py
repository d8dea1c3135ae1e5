"""Objects of one image as its annotation has them, and where they are in the network's image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.vision.boxes import FIELDS, PADDING, ROUNDING
from sft_lightning.data.vision.images import Placement, place_box

BOX_PROBLEM = "its annotation"  # how the sentence about the boxes of an image begins, and what it says of each fault
OTHER_SIDES, NO_AREA, NOT_FINITE, OUTSIDE = "is of an image of", "without an area", "is not a number", "outside of the"
_LEAST_INSIDE = 0.5  # share of the area of a box that has to lie in the image

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one image.

    Attributes:
        file: File that the annotation stands in.
        classes: Number of the class of each object, int64, (N,).
        boxes: Corners x1, y1, x2, y2, float64, (N, 4): in pixels, the first of which reaches from 0 to 1, or in shares
            of the sides.
        ignored: Which objects evaluation ignores and training leaves out, boolean, (N,).
        sides: Width and height in pixels that the annotation states; None where it does not.
        are_shares: Whether boxes are shares of the sides.
        problem: Why the annotation cannot be used; empty if it can.
        marks: Further marks of the objects by name, such as `truncated`, boolean, (N,), which change nothing here.
    """

    file: Path
    classes: npt.NDArray[np.int64]
    boxes: Boxes
    ignored: npt.NDArray[np.bool_]
    sides: tuple[int, int] | None = None
    are_shares: bool = False
    problem: str = ""
    marks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def content(self) -> bytes:
        """Bytes that are equal where objects are."""
        head = repr((self.sides, self.are_shares, self.problem, len(self))).encode()
        return head + self.classes.tobytes() + self.boxes.tobytes() + self.ignored.tobytes()

    def in_pixels(self, sides: tuple[int, int]) -> Boxes:
        """Return the boxes in pixels, some of which may reach beyond the image, (N, 4).

        Args:
            sides: Width and height of the image in pixels.
        """
        return self.boxes * [*sides, *sides] if self.are_shares else self.boxes

    def find_problem(self, sides: tuple[int, int]) -> str | None:
        """Return why the boxes cannot be used, as a clause that names their file, or None.

        Args:
            sides: Width and height of the image in pixels.
        """
        where = f"{BOX_PROBLEM} in '{show_path(self.file)}'"
        if self.problem:
            return f"{where} is refused: {self.problem}"
        if self.sides is not None and self.sides != sides:
            stated, own = (" x ".join(map(str, one)) for one in (self.sides, sides))
            return f"{where} {OTHER_SIDES} {stated} pixels, and the file has {own}: correct the sizes or the boxes"
        boxes = self.in_pixels(sides)
        with np.errstate(invalid="ignore", divide="ignore"):  # what is not a number is bad, too
            share = _measure_areas(clip_corners(boxes, sides)) / _measure_areas(boxes)
        bad = np.flatnonzero(~(share >= _LEAST_INSIDE))
        if not len(bad):
            return None
        k = int(bad[0])
        named = f"{where} has box {k + 1} of {len(boxes)}, {_format(boxes[k])},"
        if not np.isfinite(boxes[k]).all():
            return f"{named} with a corner that {NOT_FINITE}: correct it"
        if boxes[k, 2] <= boxes[k, 0] or boxes[k, 3] <= boxes[k, 1]:
            return f"{named} {NO_AREA}: give x1 < x2 and y1 < y2"
        lies = "" if share[k] <= 0 else "mostly "
        return f"{named} {lies}{OUTSIDE} image of {sides[0]} x {sides[1]} pixels: correct or remove it"

    def count_clipped(self, sides: tuple[int, int]) -> int:
        """Return how many boxes reach beyond the image by more than a hundredth of a pixel.

        Args:
            sides: Width and height of the image in pixels.
        """
        boxes = self.in_pixels(sides)
        return int((np.abs(boxes - clip_corners(boxes, sides)) > 0.01).any(1).sum())

    def place(
        self,
        sides: tuple[int, int],
        size: int,
        box: tuple[float, float, float, float],
        least: float,
        rows: int | None = None,
    ) -> Tensor:
        """Return the objects in a square image, float32, (N, 6), as `boxes` describes; those out of sight are left out.

        Args:
            sides: Width and height of the image in pixels.
            size: Side of the square image in pixels.
            box: Part of the image that becomes the square one, as `Geometry.box` gives it.
            least: Smallest share of the area of an object that has to be seen.
            rows: Number of rows N, which padding fills up; None for the number of the objects.
        """
        placement = place_box(sides, size, box)
        inner, count = placement.inner, 0
        if inner[0] < inner[2] and inner[1] < inner[3]:  # otherwise a crop of the border that `pad` adds
            factor, shift = _scale(placement)
            placed = clip_corners(self.in_pixels(sides), sides) * factor + shift
            seen = clip_corners(placed, (size, size))
            areas = _measure_areas(seen)
            kept = (areas > 0) & (areas >= least * ROUNDING * _measure_areas(placed))
            count = int(np.count_nonzero(kept))
        made = np.zeros((count if rows is None else rows, FIELDS), dtype=np.float32)
        made[:, 0] = PADDING
        if count:
            made[:count, 0], made[:count, 1:5], made[:count, 5] = self.classes[kept], seen[kept], self.ignored[kept]
        return torch.from_numpy(made)


def place_back(boxes: Tensor, sides: tuple[int, int], size: int, box: tuple[float, float, float, float]) -> Tensor:
    """Return boxes of a square image in pixels of the original, within its sides, (K, 4).

    Args:
        boxes: Corners in pixels of the square image, (K, 4).
        sides: Width and height of the original in pixels.
        size: Side of the square image in pixels.
        box: Part of the original that became the square image, as `Geometry.box` gives it.
    """
    factor, shift = (torch.from_numpy(one).to(boxes) for one in _scale(place_box(sides, size, box)))
    limits = torch.tensor([*sides, *sides], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(((boxes - shift) / factor).clamp(min=0), limits)


def _scale(placement: Placement) -> tuple[Boxes, Boxes]:
    """Return factor and shift of the corners on the way from the original to the square image, (4,) each.

    They are those of the pixels: `place_box` rounds what the image covers to whole columns and rows.
    """
    (left, top, right, bottom), columns, rows = placement
    across, down = (columns[1] - columns[0]) / (right - left), (rows[1] - rows[0]) / (bottom - top)
    x, y = columns[0] - across * left, rows[0] - down * top
    return np.array([across, down, across, down]), np.array([x, y, x, y])


def clip_corners(boxes: Boxes, sides: tuple[int, int]) -> Boxes:
    """Return boxes within an image, (N, 4).

    Args:
        boxes: Corners in pixels, (N, 4).
        sides: Width and height of the image in pixels.
    """
    return np.minimum(np.maximum(boxes, 0), (*sides, *sides))  # `clip` takes twice as long for a few boxes


def _measure_areas(boxes: Boxes) -> Boxes:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _format(box: Sequence[float] | Boxes) -> str:
    return f"[{', '.join(f'{float(v):.6g}' for v in box)}]"


def make_objects(
    file: Path,
    rows: Sequence[tuple[int, Sequence[float], bool]],
    sides: tuple[int, int] | None = None,
    are_shares: bool = False,
    marks: Mapping[str, Sequence[bool]] | None = None,
) -> Objects:
    """Make the record of the objects of an image.

    Args:
        file: File that the annotation stands in.
        rows: Number of the class, corners, and whether evaluation ignores it, of each object.
        sides: Width and height in pixels that the annotation states.
        are_shares: Whether corners are shares of the sides.
        marks: Further marks of the objects, by name.
    """
    return Objects(
        file,
        np.array([number for number, _, _ in rows], dtype=np.int64),
        np.array([corners for _, corners, _ in rows], dtype=np.float64).reshape(len(rows), 4),
        np.array([ignored for _, _, ignored in rows], dtype=np.bool_),
        sides,
        are_shares,
        marks={name: np.array(values, dtype=np.bool_) for name, values in (marks or {}).items()},
    )


def refuse_objects(file: Path, problem: str, sides: tuple[int, int] | None = None) -> Objects:
    """Make the record of an annotation that cannot be used.

    Args:
        file: File that it stands in.
        problem: Why it cannot be used.
        sides: Width and height in pixels that it states.
    """
    made = make_objects(file, (), sides)
    return Objects(file, made.classes, made.boxes, made.ignored, sides, problem=problem)
