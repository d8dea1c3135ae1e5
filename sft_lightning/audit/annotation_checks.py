"""Checks of images with annotations that lie in places of the image, such as masks or boxes."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from sft_lightning.audit.class_checks import Counts
from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.image_checks import ImageChecks
from sft_lightning.data.issues import Fault
from sft_lightning.data.split_stats import Pair, SplitStats
from sft_lightning.data.vision.annotated_datamodule import AnnotatedImageDataModule
from sft_lightning.data.vision.image_stats import ImageSplitStats


class AnnotationChecks(ImageChecks):
    """Checks of images with annotations, which are read once more for what they hold.

    Attributes:
        problem: Words that the reason begins with why an annotation is refused.
        counts: What the annotations of each split hold of each class, (N, C); those of unlabeled images stay hidden.
        refused: Images whose annotation is at fault.
        copies: Pairs of equal images.
    """

    data: AnnotatedImageDataModule
    problem: ClassVar[str]

    def __init__(self, data: Any) -> None:
        """Start without counts."""
        super().__init__(data)
        self.counts: dict[str, Tensor] = {}
        self.refused: list[CheckRow] = []
        self.copies: list[Pair] = []

    def measure(self, name: str) -> ImageSplitStats:
        """Decode the images of a split, and count what its annotations hold; those of unlabeled images stay hidden."""
        split = self.data.splits[name]
        counts = None if name == "unlabeled" else split.part.storage.count_classes(split.indices)
        if counts is not None:
            self.counts[name] = counts
        return super().measure(name)

    def find_duplicates(self, stats: Sequence[ImageSplitStats]) -> tuple[list[Pair], list[Pair]]:
        """Compare pixels of images, and thumbnails for near-duplicates."""
        exact, near = super().find_duplicates(stats)
        self.copies = exact
        return exact, near

    def find_unreadable(self, stats: Sequence[ImageSplitStats], policy: str, faults: Sequence[Fault]) -> CheckResult:
        """Find images that cannot be read; those whose annotation is at fault are listed by `check_targets`."""
        rows = super().find_unreadable(stats, policy, faults).rows
        self.refused = [row for row in rows if row.detail.startswith(self.problem)]
        return self.report_unreadable([row for row in rows if row not in self.refused], policy)

    def count_classes(self, stats: Sequence[SplitStats[Any]]) -> Counts:
        """Count what annotations hold of each class by split, without the unlabeled split."""
        return {name: counts.sum(0).tolist() for name, counts in self.counts.items()}

    def sort_refused(self, kinds: Sequence[str]) -> dict[str, list[CheckRow]]:
        """Return the images whose annotation is at fault by the first of some words that its reason holds.

        Args:
            kinds: Words of reasons, the last of which all of them hold.
        """
        found: dict[str, list[CheckRow]] = {kind: [] for kind in kinds}
        for row in self.refused:
            found[next(kind for kind in kinds if kind in row.detail)].append(row)
        return found

    def describe_policy(self, policy: str) -> str:
        """Return what `fit` does about refused annotations.

        Args:
            policy: `raise` or `skip`.
        """
        setting = self.data.bad_setting
        return f"stops at the first ({setting}: raise)" if policy == "raise" else f"leaves them out ({setting}: skip)"
