"""Checks of masks: values that nobody names, other sizes than the image's, nothing in them, and copies that differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_lightning.audit.class_checks import Counts
from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.image_checks import ImageChecks
from sft_lightning.data.issues import Fault
from sft_lightning.data.split_stats import Pair, SplitStats
from sft_lightning.data.vision.image_stats import ImageSplitStats
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.masks import MASK_PROBLEM, WRONG_SIZE, WRONG_VALUE
from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule

_FEW = 0.001  # share of pixels below which a class is listed as small


class MaskChecks(ImageChecks):
    """Checks of images with masks, each of which is read once more for its pixels."""

    data: SegmentationDataModule

    def __init__(self, data: Any) -> None:
        """Start without pixels."""
        super().__init__(data)
        self._pixels: dict[str, Tensor] = {}
        self._refused: list[CheckRow] = []
        self._copies: list[Pair] = []

    def measure(self, name: str) -> ImageSplitStats:
        """Decode the images of a split, and count the pixels of its masks; those of unlabeled images stay hidden."""
        split = self.data.splits[name]
        counts = None if name == "unlabeled" else split.part.storage.count_classes(split.indices)
        if counts is not None:
            self._pixels[name] = counts
        return super().measure(name)

    def find_duplicates(self, stats: Sequence[ImageSplitStats]) -> tuple[list[Pair], list[Pair]]:
        """Compare pixels of images, and thumbnails for near-duplicates."""
        exact, near = super().find_duplicates(stats)
        self._copies = exact
        return exact, near

    def find_unreadable(self, stats: Sequence[ImageSplitStats], policy: str, faults: Sequence[Fault]) -> CheckResult:
        """Find images that cannot be read; those whose mask is at fault are listed by `check_targets`."""
        rows = super().find_unreadable(stats, policy, faults).rows
        self._refused = [row for row in rows if row.detail.startswith(MASK_PROBLEM)]
        return self.report_unreadable([row for row in rows if row not in self._refused], policy)

    def count_classes(self, stats: Sequence[SplitStats[Any]]) -> Counts:
        """Count the pixels of each class by split, without the unlabeled split."""
        return {name: counts.sum(0).tolist() for name, counts in self._pixels.items()}

    def format_counts(self, counts: Counts) -> dict[str, list[str]]:
        """Return the number of masks that have each class, and the class's share of the pixels."""
        shown = {}
        for name, own in self._pixels.items():
            shares = own.sum(0).double() / own.sum().clamp_min(1)
            masks = (own > 0).sum(0)
            shown[name] = [f"{n:,} ({share:.1%})" for n, share in zip(masks.tolist(), shares.tolist(), strict=True)]
        return shown

    @property
    def counts_note(self) -> str:
        """Meaning of the cells of the table of classes."""
        return "Masks that have the class, and its share of the pixels."

    def check_targets(self, policy: str) -> dict[str, list[CheckResult]]:
        """Find masks that `fit` refuses, empty ones, and copies of images with other masks."""
        setting = self.data.bad_setting
        does = f"stops at the first ({setting}: raise)" if policy == "raise" else f"leaves them out ({setting}: skip)"
        refused: dict[str, list[CheckRow]] = {WRONG_SIZE: [], WRONG_VALUE: [], MASK_PROBLEM: []}
        for row in self._refused:
            refused[next(kind for kind in refused if kind in row.detail)].append(row)
        noun = "masks"
        results = [
            CheckResult(
                "refused", f"{noun} of another size than their image", f"fit {does}: give both one size",
                refused[WRONG_SIZE],
            ),
            CheckResult(
                "refused", f"{noun} with a value or color that no class has",
                f"fit {does}: name the class (class_names, class_colors), or correct the mask", refused[WRONG_VALUE],
            ),
            CheckResult(
                "unreadable", f"{noun} that cannot be read", f"fit {does}: replace or remove them",
                refused[MASK_PROBLEM],
            ),
            CheckResult(
                "constant", f"{noun} without a pixel that counts",
                "They teach and judge nothing: draw them, or remove the mask to use the image without one",
                self._list(lambda own: own.sum(1) == 0),
            ),
            CheckResult(
                "constant", f"{noun} of one class alone",
                "That may be right, as where only background is seen: look whether their objects were drawn",
                self._list(lambda own: (own > 0).sum(1) == 1, named=True),
            ),
            self._find_small_classes(),
            self._find_conflicts(),
        ]  # fmt: skip
        return {noun: results}

    def _list(self, test: Any, named: bool = False) -> list[CheckRow]:
        """Return a row for each mask whose counts (N, C) pass a test, with the name of its largest class."""
        rows = []
        for name, own in self._pixels.items():
            split, readable = self.data.splits[name], self._find_readable(name)
            for i in (test(own) & readable).nonzero()[:, 0].tolist():
                kind = self.data.class_names[int(own[i].argmax())] if named else ""
                rows.append(CheckRow(name, split.part.ids[split.indices[i]], kind))
        return rows

    def _find_readable(self, name: str) -> Tensor:
        """Return which images of a split have a mask that can be read, boolean, (N,)."""
        split = self.data.splits[name]
        storage = split.part.storage
        assert isinstance(storage, MaskedImages)
        known = {row.name for row in self._refused}
        there = [storage.masks[i] is not None and split.part.ids[i] not in known for i in split.indices]
        return torch.tensor(there, dtype=torch.bool)

    def _find_small_classes(self) -> CheckResult:
        rows = []
        for name, own in self._pixels.items():
            shares = own.sum(0).double() / own.sum().clamp_min(1)
            for k in ((shares > 0) & (shares < _FEW)).nonzero()[:, 0].tolist():
                rows.append(CheckRow(name, self.data.class_names[k], f"{float(shares[k]):.4%} of the pixels"))
        advice = (
            "A few pixels decide their intersection over union, and so the mean: hold out more masks, or join classes"
        )
        return CheckResult("uneven_classes", f"classes of less than {_FEW:.1%} of the pixels", advice, rows)

    def _find_conflicts(self) -> CheckResult:
        rows = []
        for pair in self._copies:
            (one, i), (other, j) = pair.first, pair.second
            share = _compare_masks(*((split, split.split.indices[at]) for split, at in (pair.first, pair.second)))
            if share:
                rows.append(
                    CheckRow(one.name, one.id(i), f"{share:.1%} of the pixels differ from those of {other.id(j)}")
                )
        advice = "One of the two masks is wrong: correct it, or remove both"
        return CheckResult("label_conflict", "images that equal one with another mask", advice, rows)


def _compare_masks(*places: tuple[SplitStats[Any], int]) -> float:
    """Return the share of pixels in which the masks of two images differ; 0 where one is hidden or cannot be read."""
    masks = []
    for one, index in places:
        storage = one.split.part.storage
        assert isinstance(storage, MaskedImages)
        if storage.masks[index] is None or one.name == "unlabeled":
            return 0.0
        try:
            mask = storage.read_mask(index)
        except OSError:
            return 0.0
        assert mask is not None  # as `masks` says
        masks.append(mask)
    first, second = masks
    return float(np.mean(first != second)) if first.shape == second.shape else 1.0
