"""Describe how the current data differs from the data of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 3  # names in a sentence


@dataclass
class SplitChanges:
    """Differences between the data of a run and the current data: names of examples by kind of change.

    Attributes:
        gone: Missing or unreadable examples, by split.
        blank: Labeled examples whose label was removed.
        relabeled: Examples with another label, with both labels.
        changed: Examples whose file has other content.
        trained: Held-out examples whose file now holds a training example.
        new: Examples that the run did not have.
    """

    gone: dict[str, list[str]] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    relabeled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of all changed examples, but for those with another label."""
        gone = [name for names in self.gone.values() for name in names]
        return [*gone, *self.blank, *self.trained, *self.new, *self.changed]

    def describe(self) -> list[str]:
        """Return a phrase for each kind of change that occurred."""
        phrases = []
        if gone := [name for names in self.gone.values() for name in names]:
            counts = ", ".join(f"{len(names):,} {split}" for split, names in self.gone.items())
            are = _count_examples(gone, "is", "are")
            phrases.append(f"{are} gone or unreadable ({counts}): {format_examples(gone)}")
        for names, what in (
            (self.blank, "left out without the former label"),
            (self.trained, "left out, as the run was trained on what the file now holds"),
            (self.new, "not in the run's split and left out"),
        ):
            if names:
                phrases.append(f"{_count_examples(names, 'is', 'are')} {what}: {format_examples(names)}")
        if self.changed:
            phrases.append(
                f"{_count_examples(self.changed, 'has', 'have')} other content than in the run: "
                f"{format_examples(self.changed)}"
            )
        if self.relabeled:
            phrases.append(
                f"{_count_examples(self.relabeled, 'has', 'have')} another label than in the run: "
                f"{format_examples(self.relabeled)}"
            )
        return phrases


def _count_examples(names: Sequence[str], one: str, more: str) -> str:
    return f"1 example {one}" if len(names) == 1 else f"{len(names):,} examples {more}"


def format_examples(names: Sequence[str]) -> str:
    """Format names of examples for a sentence, shortened after the first three.

    Args:
        names: Names of examples.
    """
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
