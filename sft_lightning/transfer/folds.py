"""Folds of a cross-validation that keep copies of an example, and groups of the source, together."""

from dataclasses import dataclass

from sft_lightning.data.copies import Copies, get_groups
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split
from sft_lightning.transfer.scores import find_fewest_groups
from sft_lightning.utils.errors import InputError


@dataclass(frozen=True)
class FoldPlan:
    """Constraints of a cross-validation on labeled examples.

    Attributes:
        groups: Group of each labeled example, copies joined; None where each example stands alone.
        joined: Group of each labeled example, joined with copies among the further examples, too.
        further: Group of each further example; a fold that holds out this group must not learn from it.
        folds: Number of folds, smaller than requested where copies leave fewer groups in a class.
        distinct: Positions of labeled examples without repeated copies.
        copies: Copies among the labeled examples.
        notes: Phrases about copies and folds for the user.
    """

    groups: list[str] | None
    joined: list[str]
    further: list[str]
    folds: int
    distinct: list[int]
    copies: Copies
    notes: list[str]


def plan_folds(data: FewLabelDataModule, labeled: Split, folds: int, others: Split | None = None) -> FoldPlan:
    """Join copies among labeled examples, and groups that share one, into groups that folds keep together.

    Args:
        data: Data module of the examples, which knows what copies are.
        labeled: Examples to divide.
        folds: Requested number of folds.
        others: Further examples to learn from, such as unlabeled ones; they may be copies of labeled ones.

    Raises:
        InputError: All labeled examples of a class are copies of each other.
    """
    splits = [labeled] if others is None or not len(others) else [labeled, others]
    copies, all_copies = data.find_copies(labeled, others)
    given = get_groups([(split.part, i) for split in splits for i in split.indices])
    joined = all_copies.join_groups(given)
    if joined is None:  # no group, and no copy anywhere
        joined = [str(i) for i in range(len(all_copies.sets))]
    labeled_groups, further = joined[: len(labeled)], joined[len(labeled) :]
    has_groups = given is not None or len(set(labeled_groups)) < len(labeled_groups)
    groups = labeled_groups if has_groups else None
    notes = []
    if copies.count:
        notes.append(f"{copies} among {len(labeled)} labeled examples; copies stay in one fold")
    before = None if given is None else given[: len(labeled)]
    if groups != before and data.target == "class":
        fewest, possible = find_fewest_groups(labeled.labels, groups), find_fewest_groups(labeled.labels, before).groups
        name = repr(data.class_names[fewest.label])
        if fewest.groups == 1 < possible:
            raise InputError(
                f"the labeled examples of class {name} are copies of each other or in groups that share copies, and "
                "cross-validation needs 2 groups of different examples: add labels"
            )
        if fewest.groups < folds <= possible:
            notes.append(
                f"{fewest.groups} folds in place of {folds}, since class {name} has only {fewest.groups} groups of "
                "different examples"
            )
            folds = fewest.groups
    return FoldPlan(
        groups, labeled_groups, further, folds, copies.pick_representatives(labeled.labels.tolist()), copies, notes
    )
