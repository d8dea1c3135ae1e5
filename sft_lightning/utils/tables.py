"""Tables as aligned plain text, for terminals and logs."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], alignment: str = "<") -> list[str]:
    """Align the cells of a table and return its rows as lines.

    Args:
        rows: Cells of each row, all of the same length; the header is a row like the others.
        alignment: `<` (left) or `>` (right) for each column; the last one holds for all further columns.

    Raises:
        ValueError: The rows differ in length.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = alignment.ljust(len(widths), alignment[-1])
    return ["  ".join(map(_pad, row, widths, sides)).rstrip() for row in rows]


def _pad(cell: str, width: int, side: str) -> str:
    return cell.rjust(width) if side == ">" else cell.ljust(width)
