"""Results of the checks of an audit, as text, JSON and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.issues import Finding, FindingKind
from sft_lightning.utils.spreadsheet import format_csv

_EXAMPLES = 3
COLUMNS = ("split", "id", "finding", "detail")


class CheckRow(NamedTuple):
    """One example, class, group or file that a check reports.

    Attributes:
        split: Name of the split it is in.
        name: Id of the example, or name of the class, group or file.
        detail: Short description of the problem; may be empty.
    """

    split: str
    name: str
    detail: str = ""


@dataclass
class CheckResult:
    """All items that one check reports; none where the data passes it.

    Attributes:
        kind: Kind of the finding that it leads to.
        name: Description of the items.
        advice: Remedy for the user.
        rows: Items, the most telling first.
        contaminates: Whether they make metrics on the test or validation split untrustworthy.
    """

    kind: FindingKind
    name: str
    advice: str
    rows: Sequence[CheckRow]
    contaminates: bool = False

    @property
    def finding(self) -> Finding:
        """Finding of one sentence: the number, a few examples and the remedy."""
        names = [(show_path(row.name), row.detail) for row in self.rows[:_EXAMPLES]]
        shown = [f"{name} ({detail})" if detail else name for name, detail in names]
        more = f" and {len(self.rows) - _EXAMPLES:,} more" if len(self.rows) > _EXAMPLES else ""
        message = f"{self.name} ({len(self.rows):,}): {', '.join(shown)}{more}. {self.advice}"
        return Finding(self.kind, message, [row.name for row in self.rows])

    def to_json(self) -> dict[str, object]:
        """Convert to JSON types, with a few examples."""
        examples = [row._asdict() for row in self.rows[:_EXAMPLES]]
        return {
            "finding": self.name,
            "kind": self.kind,
            "count": len(self.rows),
            "contaminates": self.contaminates,
            "advice": self.advice,
            "examples": examples,
        }


def format_findings_csv(results: Sequence[CheckResult]) -> str:
    """Format all rows of all results as CSV.

    Args:
        results: Results of checks, in the order to write them.
    """
    rows = [(row.split, row.name, result.name, row.detail) for result in results for row in result.rows]
    return format_csv([COLUMNS, *rows])
