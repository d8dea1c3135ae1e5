"""Checks of boxes: those that do not fit their image, tiny, doubled and clipped ones, and copies that differ."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from sft_lightning.audit.annotation_checks import AnnotationChecks
from sft_lightning.audit.class_checks import Counts
from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.boxes import compute_areas
from sft_lightning.data.vision.detection_datamodule import DetectionDataModule
from sft_lightning.data.vision.image_stats import ImageSplitStats
from sft_lightning.data.vision.objects import BOX_PROBLEM, NO_AREA, NOT_FINITE, OTHER_SIDES, OUTSIDE, Objects

_TINY = 8  # pixels of the network's image: a side of a square of the object's area below which it is listed
_SAME = 0.9  # intersection over union from which two boxes are taken for those of one object


class BoxChecks(AnnotationChecks):
    """Checks of images with boxes."""

    data: DetectionDataModule
    problem: ClassVar[str] = BOX_PROBLEM

    def describe_metric(self) -> tuple[str, str]:
        """Return the metric that says nothing of a class without objects, and advice for uneven classes."""
        return "map", "Every class counts as much in the mean: annotate more images that show the rare ones"

    def format_counts(self, counts: Counts) -> dict[str, list[str]]:
        """Return the number of objects of each class, and of the images that show them."""
        return {
            name: [
                f"{n:,} ({images:,})" for n, images in zip(own.sum(0).tolist(), (own > 0).sum(0).tolist(), strict=True)
            ]
            for name, own in self.counts.items()
        }

    @property
    def counts_note(self) -> str:
        """Meaning of the cells of the table of classes."""
        return "Objects of the class, and in brackets the images that show some. Objects to be ignored do not count."

    def summarize(self, stats: Sequence[ImageSplitStats]) -> dict[str, object]:
        """Summarize the files and the sizes of the objects in JSON types."""
        sizes = torch.cat([torch.zeros(0), *(_measure_sides(placed) for _, _, _, placed in self._iterate())])
        objects: dict[str, object] = {"count": len(sizes)}
        if len(sizes):
            low, middle, high = torch.quantile(sizes.double(), torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
            objects |= {"sides": {"10%": round(low, 1), "50%": round(middle, 1), "90%": round(high, 1)}}
        return {**super().summarize(stats), "objects": objects}

    def format_summary(self, facts: dict[str, Any]) -> list[str]:
        """Format the summary as lines of text."""
        objects = facts["objects"]
        lines = super().format_summary({key: value for key, value in facts.items() if key != "objects"})
        if not objects["count"]:
            return [*lines, "objects  none"]
        low, middle, high = objects["sides"].values()
        return [
            *lines,
            f"objects  {objects['count']:,}; square root of the area in the network's image: {middle:g} pixels in the "
            f"middle, {low:g} to {high:g} for 80% of them",
        ]

    def check_targets(self, policy: str) -> dict[str, list[CheckResult]]:
        """Find annotations that `fit` refuses, boxes that may be wrong, and copies of images with other boxes."""
        does = f"fit {self.describe_policy(policy)}"
        refused = self.sort_refused((OTHER_SIDES, OUTSIDE, NO_AREA, NOT_FINITE, BOX_PROBLEM))
        results = [
            CheckResult(
                "refused", "annotations of an image of another size", f"{does}: correct the sizes or the boxes",
                refused[OTHER_SIDES],
            ),
            CheckResult(
                "refused", "images with a box outside of them", f"{does}: correct or remove the box", refused[OUTSIDE]
            ),
            CheckResult(
                "refused", "images with a box without an area", f"{does}: give x1 < x2 and y1 < y2", refused[NO_AREA]
            ),
            CheckResult(
                "not_finite", "images with a corner that is not a number", f"{does}: correct it", refused[NOT_FINITE]
            ),
            CheckResult(
                "unreadable", "annotations that cannot be used", f"{does}: correct them", refused[BOX_PROBLEM]
            ),
            self._find_clipped(),
            self._find_tiny(),
            *self._find_doubled(),
            CheckResult(
                "constant", "annotated images without an object",
                "That may be right, as where nothing is to be found: look whether objects were overlooked",
                [CheckRow(split, name) for split, name, objects, _ in self._iterate() if not len(objects)],
            ),
            self._find_conflicts(),
        ]  # fmt: skip
        return {"boxes": results}

    def _iterate(self) -> Iterator[tuple[str, str, Objects, Tensor]]:
        """Yield split, name, objects and boxes in the network's image, (N, 6), of each image with known objects."""
        geometry, refused = self.data.geometry, {row.name for row in self.refused}
        for name in self.counts:
            split = self.data.splits[name]
            for i in split.indices:
                storage, known = split.part.storage, split.part.ids[i]
                assert isinstance(storage, BoxedImages)
                objects = storage.objects[i]
                if objects is not None and not objects.problem and known not in refused:
                    sides = storage.sides_of(i)
                    yield name, known, objects, objects.place(sides, geometry.size, geometry.box(*sides, None), 0.0)

    def _find_clipped(self) -> CheckResult:
        rows = []
        for name in self.counts:
            split = self.data.splits[name]
            assert isinstance(split.part.storage, BoxedImages)
            clipped = split.part.storage.count_clipped()
            rows += [CheckRow(name, split.part.ids[i], _count_boxes(clipped[i])) for i in split.indices if i in clipped]
        advice = "They are clipped: correct them if they should not reach beyond"
        return CheckResult("cropped", "images with boxes that reach beyond the border", advice, rows)

    def _find_tiny(self) -> CheckResult:
        found = []
        for split, name, _, placed in self._iterate():
            sides = _measure_sides(placed)
            if count := int((sides < _TINY).sum()):
                least = float(sides.min())
                found.append(
                    (least, CheckRow(split, name, f"{_count_boxes(count)}, the smallest of {least:.1f} pixels"))
                )
        rows = [row for _, row in sorted(found)]
        advice = (
            f"At image_size {self.data.geometry.size} the square root of their area is below {_TINY} pixels, where "
            "most detectors fail: raise image_size, or cut images into parts"
        )
        return CheckResult("small_object", "images with tiny objects", advice, rows)

    def _find_doubled(self) -> list[CheckResult]:
        """Find boxes that nearly equal another one of their image, of the same class and of others."""
        doubled, contrary = [], []
        for split, name, _, placed in self._iterate():
            first, second = (box_iou(placed[:, 1:5], placed[:, 1:5]).triu(1) >= _SAME).nonzero(as_tuple=True)
            same = placed[first, 0] == placed[second, 0]
            if count := int(same.sum()):
                doubled.append(CheckRow(split, name, _count_boxes(count)))
            for i, j in list(zip(first[~same].tolist(), second[~same].tolist(), strict=True))[:1]:
                kinds = [self.data.class_names[int(placed[k, 0])] for k in (i, j)]
                contrary.append(CheckRow(split, name, f"{kinds[0]!r} and {kinds[1]!r}"))
        overlap = f"an intersection over union of at least {_SAME:g}"
        return [
            CheckResult(
                "duplicate", "images with a box drawn twice",
                f"Two boxes of one class have {overlap}: remove one, or the second counts as missed", doubled,
            ),
            CheckResult(
                "label_conflict", "images with one object of two classes",
                f"Two boxes of different classes have {overlap}: remove the wrong one", contrary,
            ),
        ]  # fmt: skip

    def _find_conflicts(self) -> CheckResult:
        rows = []
        for pair in self.copies:
            (one, i), (other, j) = pair.first, pair.second
            first, second = (_find_objects(split, at) for split, at in (pair.first, pair.second))
            if first is not None and second is not None and not _is_equal(first, second):
                rows.append(CheckRow(one.name, one.id(i), f"other boxes than {other.id(j)}"))
        advice = "One of the two annotations is wrong: correct it, or remove both"
        return CheckResult("label_conflict", "images that equal one with other boxes", advice, rows)


def _measure_sides(placed: Tensor) -> Tensor:
    """Return the square roots of the areas of boxes (N, 6) in pixels, without those to be ignored, (N,)."""
    return compute_areas(placed[placed[:, 5] == 0, 1:5]).sqrt()


def _count_boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count:,} boxes"


def _find_objects(one: SplitStats[Any], position: int) -> Objects | None:
    """Return the objects of an image; None where they are hidden or cannot be used."""
    storage = one.split.part.storage
    assert isinstance(storage, BoxedImages)
    objects = None if one.name == "unlabeled" else storage.objects[one.split.indices[position]]
    return None if objects is None or objects.problem else objects


def _is_equal(first: Objects, second: Objects) -> bool:
    """Return whether two images have the same boxes, whatever their order, to a tenth of a pixel."""
    rows = []
    for objects in (first, second):
        table = np.concatenate([objects.classes[:, None], objects.boxes], 1)
        rows.append(table[np.lexsort(table.round(1).T[::-1])])
    return rows[0].shape == rows[1].shape and bool(np.allclose(rows[0], rows[1], atol=0.1))
