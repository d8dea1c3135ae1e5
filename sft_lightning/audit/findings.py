"""Findings of an audit, as text and as CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.utils.spreadsheet import format_csv

_EXAMPLES = 3
COLUMNS = ("split", "id", "finding", "detail")


class FindingRow(NamedTuple):
    """One image, class, group or file of a finding.

    Attributes:
        split: Name of the split it is in.
        name: Id of the example, or name of the class, group or file.
        detail: Short description of the problem; may be empty.
    """

    split: str
    name: str
    detail: str = ""


@dataclass
class Finding:
    """All problems of one kind.

    Attributes:
        name: Description of the kind.
        advice: Remedy for the user.
        rows: Affected items, the most telling first.
        contaminates: Whether it makes metrics on the test or validation split untrustworthy.
    """

    name: str
    advice: str
    rows: Sequence[FindingRow]
    contaminates: bool = False

    def __str__(self) -> str:
        """Format as one line: the number, a few examples and the remedy."""
        names = [(show_path(row.name), row.detail) for row in self.rows[:_EXAMPLES]]
        shown = [f"{name} ({detail})" if detail else name for name, detail in names]
        more = f" and {len(self.rows) - _EXAMPLES:,} more" if len(self.rows) > _EXAMPLES else ""
        return f"{self.name} ({len(self.rows):,}): {', '.join(shown)}{more}. {self.advice}."

    def to_json(self) -> dict[str, object]:
        """Convert to JSON types, with a few examples."""
        examples = [row._asdict() for row in self.rows[:_EXAMPLES]]
        return {
            "finding": self.name,
            "count": len(self.rows),
            "contaminates": self.contaminates,
            "advice": self.advice,
            "examples": examples,
        }


def format_findings_csv(findings: Sequence[Finding]) -> str:
    """Format all rows of all findings as CSV.

    Args:
        findings: Findings, in the order to write them.
    """
    rows = [(row.split, row.name, finding.name, row.detail) for finding in findings for row in finding.rows]
    return format_csv([COLUMNS, *rows])
