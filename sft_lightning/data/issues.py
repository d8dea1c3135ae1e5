"""What is wrong with a source: a run refuses it at the first fault, an audit lists them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sft_lightning.utils.errors import InputError

# Kinds that several kinds of sources have.
STRADDLING = "groups that stand in two splits"
UNTRAINED = "images of a class without a training image"


@dataclass(frozen=True)
class Fault:
    """A reason why a run would refuse the data.

    Attributes:
        kind: What all of its kind are called.
        split: Where, as the source calls it.
        name: Of the picture, class, group or file.
        detail: What is wrong with it, in a few words.
        sentence: What a run says.
    """

    kind: str
    split: str
    name: str
    detail: str
    sentence: str


_listed: ContextVar[list[Fault] | None] = ContextVar("faults", default=None)


@contextmanager
def collect_faults() -> Iterator[list[Fault]]:
    """Faults that are met inside are listed, and what is at fault is passed over.

    Yields:
        The list, which grows.
    """
    found: list[Fault] = []
    token = _listed.set(found)
    try:
        yield found
    finally:
        _listed.reset(token)


def report_fault(kind: str, split: str, name: str, detail: str, sentence: str) -> None:
    """Lists a fault where they are listed; elsewhere the first one stops the run.

    Args:
        kind: See `Fault`.
        split: See `Fault`.
        name: See `Fault`.
        detail: See `Fault`.
        sentence: See `Fault`.

    Raises:
        InputError: Faults are not listed.
    """
    found = _listed.get()
    if found is None:
        raise InputError(sentence)
    found.append(Fault(kind, split, name, detail, sentence))
