"""What an audit asks of a modality. The defaults serve any modality; each one of this package knows more."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sft_lightning.audit.class_checks import Counts, count_classes
from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.copies import Copies, find_exact_copies
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.issues import Fault
from sft_lightning.data.split_stats import Pair, SplitStats, find_equal
from sft_lightning.data.splits import Split
from sft_lightning.tasks.make_task import make_task
from sft_lightning.transfer.vectors import stack_vectors

Places = Sequence[tuple[SplitStats[Any], int]]  # splits and positions in them; those of one split are contiguous


class ModalityChecks:
    """Checks that need to look into examples: here, at their content as a whole.

    Attributes:
        action: What the first pass over the examples does, for the log.
        bounds: Differences up to which two examples count as near-duplicates, by name; empty if none are looked for.
    """

    action: ClassVar[str] = "reading"
    bounds: ClassVar[dict[str, float]] = {}

    def __init__(self, data: FewLabelDataModule) -> None:
        """Keep the data module.

        Args:
            data: Data module after its setup.
        """
        self.data = data

    def measure(self, name: str) -> SplitStats[Any]:
        """Measure the examples of a split.

        Args:
            name: Name of the split.
        """
        split = self.data.splits[name]
        return SplitStats(name, split, [*split.part.storage.fingerprints(split.indices)])

    def find_duplicates(self, stats: Sequence[SplitStats[Any]]) -> tuple[list[Pair], list[Pair]]:
        """Find exact and near-duplicates within each split and between any two splits.

        Each example with a duplicate in another split, or an earlier one in its own, is in one pair for that split.

        Args:
            stats: Statistics of the splits; the example in the earlier split is `first` in a pair.

        Returns:
            Exact duplicates, and near-duplicates sorted by their difference.
        """
        return find_equal(stats, [dict(one.readable) for one in stats]), []

    def find_copies(self, places: Places) -> Copies:
        """Find sets of copies, which a cross-validation keeps together.

        Args:
            places: Examples.
        """
        return find_exact_copies([Split(one.split.part, [one.split.indices[i]]) for one, i in places])

    def make_features(self, places: Places) -> Any:
        """Return features without a network, by which labels are judged: an array, or a sparse matrix, (N, F).

        Args:
            places: Readable examples.
        """
        pieces = []
        for name in self.add_splits(places):
            x, _, positions = stack_vectors(self.data.batches_of(name, torch.device("cpu")), self.data)
            pieces.append(x[positions.argsort()].numpy())
        made: NDArray[np.float32] = np.concatenate(pieces)
        return made

    def add_splits(self, places: Places) -> list[str]:
        """Add a split with some examples of each split, and return the names in their order.

        Args:
            places: Readable examples.
        """
        positions: dict[str, list[int]] = {}
        stats = {one.name: one for one, _ in places}
        for one, i in places:
            positions.setdefault(one.name, []).append(i)
        for name, chosen in positions.items():
            split = stats[name].split
            self.data.splits[f"{name} with labels"] = Split(split.part, [split.indices[i] for i in chosen])
        return [f"{name} with labels" for name in positions]

    def find_unreadable(self, stats: Sequence[SplitStats[Any]], policy: str, faults: Sequence[Fault]) -> CheckResult:
        """Find examples that cannot be read.

        Args:
            stats: Statistics of all splits.
            policy: What `fit` does about them: `raise` or `skip`.
            faults: Faults of the data that were collected.
        """
        rows = [
            CheckRow(one.name, one.id(i), reason)
            for one in stats
            for i, reason in enumerate(one.examples)
            if isinstance(reason, str)
        ]
        return self.report_unreadable(rows, policy)

    def report_unreadable(self, rows: Sequence[CheckRow], policy: str) -> CheckResult:
        """Return the result about examples that cannot be read.

        Args:
            rows: One for each.
            policy: What `fit` does about them: `raise` or `skip`.
        """
        setting = self.data.bad_setting
        does = f"stops at the first ({setting}: raise)" if policy == "raise" else f"leaves them out ({setting}: skip)"
        name = f"{self.data.input_spec.plural} that cannot be read"
        return CheckResult("unreadable", name, f"fit {does}: replace or remove them", rows)

    def find_odd(self, stats: Sequence[SplitStats[Any]]) -> list[CheckResult]:
        """Find readable examples that may not be what they seem.

        Args:
            stats: Statistics of all splits.
        """
        return []

    def count_classes(self, stats: Sequence[SplitStats[Any]]) -> Counts:
        """Count the examples of each class by split, without the unlabeled split; of masks, their pixels.

        Args:
            stats: Statistics of all splits.
        """
        return count_classes(stats, self.data)

    def describe_metric(self) -> tuple[str, str]:
        """Return the metric that says nothing of a class without examples, and advice for uneven classes."""
        task = make_task(self.data.target, self.data.num_classes)
        return task.monitor[0].removeprefix("val/"), task.uneven_advice

    def format_counts(self, counts: Counts) -> dict[str, list[str]]:
        """Return the cells of the table of classes by split.

        Args:
            counts: Result of `count_classes`.
        """
        return {name: [f"{n:,}" for n in own] for name, own in counts.items()}

    @property
    def counts_note(self) -> str:
        """Meaning of the cells of the table of classes, where they are not numbers of examples."""
        return ""

    def check_targets(self, policy: str) -> dict[str, list[CheckResult]]:
        """Check what networks learn of an example where it is more than a class, by topic; here, nothing.

        Args:
            policy: What `fit` does about examples that it cannot use: `raise` or `skip`.
        """
        return {}

    def find_strays(self, faults: Sequence[Fault]) -> list[CheckResult]:
        """Find what lies in the source and is not read, or is read otherwise than it may be meant.

        Args:
            faults: Faults of the data, which are reported elsewhere.
        """
        return []

    def summarize(self, stats: Sequence[SplitStats[Any]]) -> dict[str, object]:
        """Summarize the examples in JSON types.

        Args:
            stats: Statistics of all splits.
        """
        return {}

    def format_summary(self, facts: dict[str, Any]) -> list[str]:
        """Format the summary as lines of text.

        Args:
            facts: Summary from `summarize`.
        """
        return []
