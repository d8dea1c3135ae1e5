"""Class counts of each split, and checks for missing and uneven classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.split_datamodule import SplitDataModule
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.utils.tables import align_columns

IMBALANCE = 10  # times as many examples as the smallest class
_MAX_ROWS = 24

Counts = dict[str, list[int]]
SetSizes = dict[str, dict[str, float]]


def _list_labels(stats: Sequence[SplitStats[Any]]) -> dict[str, Tensor]:
    """Return the known labels of each split but the unlabeled one, whose labels stay hidden."""
    listed = {}
    for one in stats:
        if one.name != "unlabeled":
            labels = torch.tensor([one.label(i) for i in range(len(one))], dtype=torch.int64)
            listed[one.name] = labels[labels >= 0]
    return listed


def count_classes(stats: Sequence[SplitStats[Any]], data: SplitDataModule) -> Counts:
    """Count the examples of each class by split, without the unlabeled split.

    Args:
        stats: Statistics of all splits.
        data: Data module of the splits.
    """
    return {name: data.count_labels(labels).tolist() for name, labels in _list_labels(stats).items()}


def measure_sets(stats: Sequence[SplitStats[Any]], data: SplitDataModule) -> SetSizes:
    """Return how many classes the examples of each split have: `mean`, `most`, and the number with `none`.

    Args:
        stats: Statistics of all splits.
        data: Data module of the splits.

    Returns:
        Empty where each example has one class.
    """
    if data.label_sets is None:
        return {}
    sizes = {name: data.make_targets(labels).sum(1) for name, labels in _list_labels(stats).items() if len(labels)}
    return {
        name: {"mean": round(float(own.double().mean()), 3), "most": int(own.max()), "none": int((own == 0).sum())}
        for name, own in sizes.items()
    }


def format_set_sizes(sizes: SetSizes) -> list[str]:
    """Format the number of classes of an example as lines of text.

    Args:
        sizes: Result of `measure_sets`.
    """
    listed = [
        f"{own['mean']:.2f} {name} (at most {own['most']}, {own['none']:,} with none)" for name, own in sizes.items()
    ]
    return [f"classes  of an example, on average: {', '.join(listed)}"] if listed else []


def find_uneven_classes(counts: Counts, names: Sequence[str], noun: str, metric: str, advice: str) -> list[CheckResult]:
    """Find classes that a split lacks, and splits dominated by one class.

    Args:
        counts: Counts from `count_classes`.
        names: Class names.
        noun: Word for one example.
        metric: Name of the metric that says nothing of a class without examples.
        advice: Advice for a split in which some classes have far fewer examples than others.
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
            f"val/{metric} says nothing of them: hold out more (val_size)",
            missing.get("val", []),
        ),
        CheckResult(
            "missing_class",
            f"classes without a test {noun}",
            f"test/{metric} says nothing of them: hold out more (test_size)",
            missing.get("test", []),
        ),
        CheckResult(
            "uneven_classes",
            "splits of uneven classes",
            advice,
            ratios,
        ),
    ]


def format_class_counts(
    counts: Counts, totals: dict[str, int], names: Sequence[str], cells: dict[str, list[str]]
) -> list[str]:
    """Format the counts as an aligned table with one class per line; of many classes, the smallest.

    Args:
        counts: Counts from `count_classes`.
        totals: Number of examples of each split.
        names: Class names.
        cells: Text for each class by split.
    """
    order = list(range(len(names)))
    if len(names) > _MAX_ROWS:
        order = sorted(sorted(order, key=lambda c: sum(own[c] for own in counts.values()))[:_MAX_ROWS])
    rows = [["class", *totals]]
    rows += [[names[c], *(cells[s][c] if s in cells else "" for s in totals)] for c in order]
    rows.append(["all", *(f"{n:,}" for n in totals.values())])
    lines = align_columns(rows, "<>")
    if len(order) < len(names):
        lines.insert(-1, f"and {len(names) - len(order):,} larger ones")
    return lines
