"""Class counts of each split, and checks for missing and uneven classes."""

from collections.abc import Sequence
from typing import Any

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.utils.tables import align_columns

IMBALANCE = 10  # times as many examples as the smallest class
_MAX_ROWS = 24

Counts = dict[str, list[int]]


def count_classes(stats: Sequence[SplitStats[Any]], num_classes: int) -> Counts:
    """Count the examples of each class by split, without the unlabeled split, whose labels stay hidden.

    Args:
        stats: Statistics of all splits.
        num_classes: Number of classes.
    """
    counted = {}
    for one in stats:
        if one.name != "unlabeled":
            counts = [0] * num_classes
            for i in range(len(one)):
                if (label := one.label(i)) >= 0:
                    counts[label] += 1
            counted[one.name] = counts
    return counted


def find_uneven_classes(counts: Counts, names: Sequence[str], noun: str) -> list[CheckResult]:
    """Find classes that a split lacks, and splits dominated by one class.

    Args:
        counts: Counts from `count_classes`.
        names: Class names.
        noun: Word for one example.
    """
    missing = {
        split: [CheckRow(split, name) for name, n in zip(names, own, strict=True) if not n]
        for split, own in counts.items()
        if sum(own)
    }
    ratios = []
    for split, own in counts.items():
        most, least = max(own, default=0), min((n for n in own if n), default=0)
        if least and most >= IMBALANCE * least:
            large, little = names[own.index(most)], names[own.index(least)]
            ratios.append(CheckRow(split, split, f"{most:,} of {large!r}, {least:,} of {little!r}"))
    return [
        CheckResult(
            "missing_class",
            f"classes without a labeled training {noun}",
            "They cannot be learned: label some, ask for more labels, or remove the class",
            missing.get("labeled", []),
        ),
        CheckResult(
            "missing_class",
            f"classes without a validation {noun}",
            "val/accuracy says nothing of them: hold out more (val_size)",
            missing.get("val", []),
        ),
        CheckResult(
            "missing_class",
            f"classes without a test {noun}",
            "test/accuracy says nothing of them: hold out more (test_size)",
            missing.get("test", []),
        ),
        CheckResult(
            "uneven_classes",
            "splits of uneven classes",
            "Read macro_f1 beside accuracy, and try class_weights: balanced or balanced_labels: true",
            ratios,
        ),
    ]


def format_class_counts(counts: Counts, totals: dict[str, int], names: Sequence[str]) -> list[str]:
    """Format the counts as an aligned table with one class per line; of many classes, the smallest.

    Args:
        counts: Counts from `count_classes`.
        totals: Number of examples of each split.
        names: Class names.
    """
    order = list(range(len(names)))
    if len(names) > _MAX_ROWS:
        order = sorted(sorted(order, key=lambda c: sum(own[c] for own in counts.values()))[:_MAX_ROWS])
    rows = [["class", *totals]]
    rows += [[names[c], *(f"{counts[s][c]:,}" if s in counts else "" for s in totals)] for c in order]
    rows.append(["all", *(f"{n:,}" for n in totals.values())])
    lines = align_columns(rows, "<>")
    if len(order) < len(names):
        lines.insert(-1, f"and {len(names) - len(order):,} larger ones")
    return lines
