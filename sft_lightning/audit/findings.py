"""What an audit found, as lines to read and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.utils.spreadsheet import format_csv

_EXAMPLES = 3
COLUMNS = ("split", "id", "finding", "detail")


class FindingRow(NamedTuple):
    """One picture, class, group or file that a finding is about.

    Attributes:
        split: Where it stands.
        name: Its id.
        detail: What is the matter with it, in a few words; may be empty.
    """

    split: str
    name: str
    detail: str = ""


@dataclass
class Finding:
    """Everything of one kind.

    Attributes:
        name: What all of them are.
        advice: What to do about it.
        rows: The most telling first.
        contaminates: Whether figures of the test or validation split cannot be trusted because of it.
    """

    name: str
    advice: str
    rows: Sequence[FindingRow]
    contaminates: bool = False

    def __str__(self) -> str:
        """One line: how many, some of them, what to do."""
        names = [(show_path(row.name), row.detail) for row in self.rows[:_EXAMPLES]]
        shown = [f"{name} ({detail})" if detail else name for name, detail in names]
        more = f" and {len(self.rows) - _EXAMPLES:,} more" if len(self.rows) > _EXAMPLES else ""
        return f"{self.name} ({len(self.rows):,}): {', '.join(shown)}{more}. {self.advice}."

    def to_json(self) -> dict[str, object]:
        """The same in types of JSON."""
        examples = [row._asdict() for row in self.rows[:_EXAMPLES]]
        return {
            "finding": self.name,
            "count": len(self.rows),
            "contaminates": self.contaminates,
            "advice": self.advice,
            "examples": examples,
        }


def format_findings_csv(findings: Sequence[Finding]) -> str:
    """All rows of all findings as CSV.

    Args:
        findings: In their order.
    """
    rows = [(row.split, row.name, finding.name, row.detail) for finding in findings for row in finding.rows]
    return format_csv([COLUMNS, *rows])
