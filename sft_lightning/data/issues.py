"""Faults of a source: a run stops at the first one, an audit collects them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sft_lightning.utils.errors import InputError

# Kinds of faults that more than one type of source reports.
STRADDLING = "groups that are in two splits"
UNTRAINED = "images of a class without a training image"


@dataclass(frozen=True)
class Fault:
    """Reason why a run refuses the data.

    Attributes:
        kind: Name that all faults of this kind share, in the plural.
        split: Split that the fault is in, as the source calls it; may be empty.
        name: Name of the image, class, group or file.
        detail: Short description of this fault.
        sentence: Error message of a run, with the remedy.
    """

    kind: str
    split: str
    name: str
    detail: str
    sentence: str


_listed: ContextVar[list[Fault] | None] = ContextVar("faults", default=None)


@contextmanager
def collect_faults() -> Iterator[list[Fault]]:
    """Collect the faults reported inside the block in place of raising them.

    Yields:
        List that each fault is appended to.
    """
    faults: list[Fault] = []
    token = _listed.set(faults)
    try:
        yield faults
    finally:
        _listed.reset(token)


def report_fault(kind: str, split: str, name: str, detail: str, sentence: str) -> None:
    """Record a fault inside a `collect_faults` block, and raise it elsewhere.

    Args:
        kind: Name that all faults of this kind share, in the plural.
        split: Split that the fault is in; may be empty.
        name: Name of the image, class, group or file.
        detail: Short description of this fault.
        sentence: Error message with the remedy.

    Raises:
        InputError: The call is not inside a `collect_faults` block.
    """
    faults = _listed.get()
    if faults is None:
        raise InputError(sentence)
    faults.append(Fault(kind, split, name, detail, sentence))
