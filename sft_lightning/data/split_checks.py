"""Check new splits for classes and splits that got no examples."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sft_lightning.data.class_names import format_class_names
from sft_lightning.data.issues import Finding
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import SplitConfig, Splits
from sft_lightning.utils.errors import InputError


def check_splits(
    splits: Splits, parts: Mapping[str, Examples], request: SplitConfig, class_names: Sequence[str]
) -> None:
    """Refuse a number of labels that leaves classes without one, and report classes that a split lacks.

    Args:
        splits: Splits to check.
        parts: Examples of the source, which show whether a class has any labels to give.
        request: Request for these splits; findings are appended.
        class_names: Names of the classes.

    Raises:
        InputError: The request asks for fewer labels than there are classes.
    """

    def count(labels: Tensor) -> Tensor:
        known = labels[labels >= 0]
        sets = request.label_sets
        return torch.bincount(known, minlength=len(class_names)) if sets is None else sets.count(known)

    counts = {name: count(split.labels) for name, split in splits.items()}
    trained = count(parts["train"].labels) if "train" in parts else counts["labeled"]
    without = [c for c in range(len(class_names)) if not counts["labeled"][c]] if len(splits["labeled"]) else []
    if request.num_labels and (refused := [c for c in without if trained[c]]):
        present = int((trained > 0).sum())
        if request.num_labels < present:
            raise InputError(
                f"num_labels is {request.num_labels}, fewer than the {present} classes: "
                f"{format_class_names([class_names[c] for c in refused])} would have no training label; ask for at "
                f"least {present}, or for 0 to train without labels"
            )
    if without:
        held = [c for c in without if counts["val"][c] or counts["test"][c]]
        lost = [c for c in without if c not in held]
        for classes, why in (
            (held, "all of its labeled examples are in validation or test"),
            (lost, "the source has no labeled example of it that can be read and is in no other split"),
        ):
            if classes:
                names = [class_names[c] for c in classes]
                what = f"training has no label of class {format_class_names(names)}, so it cannot be learned"
                request.findings.append(Finding("missing_class", f"{what}: {why}", names))
    lacking = {
        title: [name for name, count in zip(class_names, counts[split].tolist(), strict=True) if not count]
        for split, title in (("val", "validation"), ("test", "test"))
        if counts[split].any()
    }
    if len(lacking) == 2 and lacking["validation"] == lacking["test"]:
        lacking = {"neither validation nor test": lacking["test"]}
    request.findings += [
        Finding(
            "missing_class",
            f"{title} has {'an' if 'neither' in title else 'no'} example of class {format_class_names(names)}",
            names,
        )
        for title, names in lacking.items()
        if names
    ]


def check_unlabeled_batch(count: int, batch_size: int) -> str | None:
    """Return a warning if there are fewer unlabeled examples than a labeled batch has, else None.

    Args:
        count: Number of unlabeled examples.
        batch_size: Number of labeled examples in a batch of all processes.
    """
    if count >= batch_size:
        return None
    examples = "example" if count == 1 else "examples"
    return (
        f"each unlabeled batch has only {count} {examples}, fewer than the {batch_size} labeled ones: each counts as "
        f"much as a labeled example, so the unlabeled loss has {count / batch_size:.3g} of its weight; give more "
        "unlabeled examples"
    )
