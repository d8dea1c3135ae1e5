"""Checks of where a source puts its examples: groups in one split, and no class to evaluate that none trains."""

from collections.abc import Iterable
from typing import NamedTuple

from sft_lightning.data.class_names import list_classes
from sft_lightning.data.issues import STRADDLING, UNTRAINED, report_fault
from sft_lightning.utils.errors import did_you_mean


class Placed(NamedTuple):
    """Example of a source.

    Attributes:
        place: Where the source names it, such as "line 3".
        name: Name of the example.
        label: Label; empty for an unlabeled example.
        split: Split: train, val, test or unlabeled.
        group: Group; empty for none.
    """

    place: str
    name: str
    label: str
    split: str
    group: str


def refuse_straddling(where: str, examples: Iterable[Placed]) -> None:
    """Refuse groups that are in more than one of training, validation and test.

    Args:
        where: Kind and name of the source, such as "manifest 'm.csv'".
        examples: Examples of the source.
    """
    places: dict[str, dict[str, str]] = {}
    for one in examples:
        if one.group:
            split = "train" if one.split == "unlabeled" else one.split
            places.setdefault(one.group, {}).setdefault(split, one.place)
    for group, found in places.items():
        if len(found) > 1:
            listed = " and ".join(f"{split} ({place})" for split, place in found.items())
            sentence = f"{where}: group {group!r} is in {listed}; keep it in one split"
            report_fault(STRADDLING, " and ".join(found), group, f"in {listed}", sentence)


def refuse_untrained(where: str, examples: Iterable[Placed], separator: str | None = None) -> None:
    """Refuse examples to evaluate of a class without a training example, unless nothing is trained on.

    Args:
        where: Kind and name of the source, such as "manifest 'm.csv'".
        examples: Examples of the source.
        separator: Separator of several classes in a label; None for one class each.
    """
    listed = [(one, list_classes(one.label, separator)) for one in examples]
    trained = sorted({name for one, names in listed if one.split == "train" for name in names})
    for one, names in listed if trained else []:
        for name in names if one.split in ("val", "test") else []:
            if name not in trained:
                sentence = (
                    f"{where}, {one.place}: no training example has the class {name!r} of this {one.split} "
                    f"example{did_you_mean(name, trained)}; correct it or add training examples"
                )
                report_fault(UNTRAINED, one.split, one.name, f"class {name!r}", sentence)
