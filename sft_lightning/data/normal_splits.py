"""Splits to learn what is normal: defective examples are only tested."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sft_lightning.data.class_names import format_class_names
from sft_lightning.data.issues import Finding
from sft_lightning.utils.errors import InputError

NORMAL_NAMES = ("normal", "good", "nominal", "ok", "defect_free", "no_defect", "without_defect", "healthy")


def find_normal_class(class_names: Sequence[str], given: str | None, source: str) -> str:
    """Return the name of the class of normal examples.

    Args:
        class_names: Names of the classes of the source.
        given: Name that the user gave, or None.
        source: Name of the source, for messages.

    Raises:
        InputError: The source lacks the class, or none or several have a usual name.
    """
    listed = format_class_names(class_names)
    if given is not None:
        if given not in class_names:
            raise InputError(f"normal_class is {given!r}, and source {source!r} has the classes {listed}: give one")
        return given
    usual = list_normal_names(class_names)
    if len(usual) != 1:
        raise InputError(
            f"source {source!r} has the classes {listed}, of which {'more than one' if usual else 'none'} is named "
            "normal or good: set normal_class to that of the examples without defects"
        )
    return usual[0]


def list_normal_names(class_names: Sequence[str]) -> list[str]:
    """Return the classes that are named as normal examples usually are.

    Args:
        class_names: Names of the classes.
    """
    return [name for name in class_names if "_".join(name.casefold().replace("-", " ").split()) in NORMAL_NAMES]


def find_defects(labels: Tensor, normal_class: int | None) -> npt.NDArray[np.int64]:
    """Return the positions of examples of other classes than the normal one; none without a normal class.

    Args:
        labels: Labels, int64, (N,); -1 where unknown.
        normal_class: Number of the normal class, or None.
    """
    if normal_class is None:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(((labels >= 0) & (labels != normal_class)).numpy())


def describe_unused_defects(ids: Sequence[str]) -> Finding:
    """Return a finding about defective training examples of a source with a test split of its own.

    Args:
        ids: Names of the examples.
    """
    message = f"{len(ids):,} defective training examples are left out: only normal ones are learned from"
    return Finding("ignored", message, ids)
