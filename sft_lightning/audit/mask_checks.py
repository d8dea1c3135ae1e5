"""Checks of masks: values that nobody names, other sizes than the image's, nothing in them, and copies that differ."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sft_lightning.audit.annotation_checks import AnnotationChecks
from sft_lightning.audit.class_checks import Counts
from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.masks import MASK_PROBLEM, WRONG_SIZE, WRONG_VALUE
from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule

_FEW = 0.001  # share of pixels below which a class is listed as small


class MaskChecks(AnnotationChecks):
    """Checks of images with masks, each of which is read once more for its pixels."""

    data: SegmentationDataModule
    problem: ClassVar[str] = MASK_PROBLEM

    def format_counts(self, counts: Counts) -> dict[str, list[str]]:
        """Return the number of masks that have each class, and the class's share of the pixels."""
        shown = {}
        for name, own in self.counts.items():
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
        does = self.describe_policy(policy)
        refused = self.sort_refused((WRONG_SIZE, WRONG_VALUE, MASK_PROBLEM))
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
        for name, own in self.counts.items():
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
        known = {row.name for row in self.refused}
        there = [storage.masks[i] is not None and split.part.ids[i] not in known for i in split.indices]
        return torch.tensor(there, dtype=torch.bool)

    def _find_small_classes(self) -> CheckResult:
        rows = []
        for name, own in self.counts.items():
            shares = own.sum(0).double() / own.sum().clamp_min(1)
            for k in ((shares > 0) & (shares < _FEW)).nonzero()[:, 0].tolist():
                rows.append(CheckRow(name, self.data.class_names[k], f"{float(shares[k]):.4%} of the pixels"))
        advice = (
            "A few pixels decide their intersection over union, and so the mean: hold out more masks, or join classes"
        )
        return CheckResult("uneven_classes", f"classes of less than {_FEW:.1%} of the pixels", advice, rows)

    def _find_conflicts(self) -> CheckResult:
        rows = []
        for pair in self.copies:
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
