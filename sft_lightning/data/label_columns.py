"""Labels of a table that has one column of 0 and 1 for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_lightning.data.class_names import sort_classes
from sft_lightning.data.issues import Finding
from sft_lightning.utils.errors import InputError, did_you_mean

SEPARATOR = ";"  # of the labels that the columns become
# The last two of each are how programs write a column of 0 and 1 with blanks, and one of a boolean type.
_VALUES = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class LabelColumns:
    """Setting `label_columns`: names of columns, each a class, or a pattern whose `*` stands for the class.

    Attributes:
        given: Names, or the pattern.
    """

    given: str | tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            InputError: A name is repeated or has a separator, or the pattern has no star.
        """
        if isinstance(self.given, str):
            if self.given.count("*") != 1:
                raise InputError(
                    f"label_columns is {self.given!r}: give a list of columns, or a pattern with one *, such as 'tag_*'"
                )
            return
        names = [name.strip() for name in self.given]
        if not names or not all(names):
            raise InputError(f"label_columns is {[*self.given]}: name one column for each class")
        for name in names:
            _check_name(name)
            if names.count(name) > 1:
                raise InputError(f"label_columns names the column {name!r} twice: leave one out")

    def __str__(self) -> str:
        return repr(self.given if isinstance(self.given, str) else [*self.given])

    def find(self, names: Sequence[str], where: str, needed: bool = True) -> dict[str, str]:
        """Return the name of the column of each class, in the order of the setting, or of a pattern in natural order.

        Args:
            names: Names of the columns of a table.
            where: Kind and name of the table.
            needed: Whether all of the columns must exist; if not, and one is missing, the table has no labels.

        Raises:
            InputError: A column is missing, or the star of the pattern stands for nothing in one.
        """
        there = {name.strip(): name for name in names}
        if not isinstance(self.given, str):
            wanted = [name.strip() for name in self.given]
            missing = [name for name in wanted if name not in there]
            if missing and needed:
                raise InputError(
                    f"{where} lacks the column {missing[0]!r} of label_columns{did_you_mean(missing[0], [*there])}; "
                    f"its columns are {', '.join(map(repr, there)) or 'none'}: correct the name, or add the column"
                )
            return {} if missing else {name: there[name] for name in wanted}
        begin, end = self.given.split("*")
        size = len(begin) + len(end)
        found = {
            name[len(begin) : len(name) - len(end)].strip(): written
            for name, written in there.items()
            if name.startswith(begin) and name.endswith(end) and len(name) > size
        }
        if not found and needed:
            raise InputError(
                f"{where} has no column like label_columns {self.given!r}; its columns are "
                f"{', '.join(map(repr, there)) or 'none'}: correct the pattern, or list the columns"
            )
        for name in found:
            _check_name(name)
        return {name: found[name] for name in sort_classes(found)}


class ColumnReader:
    """Makes one label of the columns of a table.

    Attributes:
        classes: Name of the column of each class.
    """

    def __init__(self, columns: LabelColumns, names: Sequence[str], where: str, needed: bool = True) -> None:
        """Find the columns.

        Args:
            columns: Setting `label_columns`.
            names: Names of the columns of the table.
            where: Kind and name of the table.
            needed: Whether the columns must exist.

        Raises:
            InputError: A column is missing.
        """
        self.classes = columns.find(names, where, needed)
        self._where = where
        self._partly_blank: list[str] = []

    def read(self, line: int, cells: Mapping[str, str]) -> str:
        """Return the label of a row, such as `dog;outdoors`; the separator alone for no class, blank if all are blank.

        Args:
            line: Number of the line.
            cells: Cell of each class.

        Raises:
            InputError: A cell is neither 0 nor 1 nor blank.
        """
        chosen, known = [], 0
        for name, cell in cells.items():
            if not (value := cell.strip().casefold()):
                continue
            if value not in _VALUES:
                raise InputError(
                    f"{self._where}, line {line}: the column {self.classes[name]!r} is {cell.strip()[:40]!r}: write 1 "
                    "where the example has the class, 0 where it lacks it, or leave all of label_columns blank if its "
                    "classes are not known"
                )
            known += 1
            chosen += [name] if _VALUES[value] else []
        if not known:
            return ""
        if known < len(cells):
            self._partly_blank.append(f"line {line}")
        return SEPARATOR.join(chosen) or SEPARATOR

    def describe(self) -> list[Finding]:
        """Return a finding about rows in which only some of the columns are blank."""
        if not self._partly_blank:
            return []
        count = len(self._partly_blank)
        rows = "1 line leaves" if count == 1 else f"{count:,} lines leave"
        message = (
            f"{self._where}: {rows} some of label_columns blank, which counts as 0 beside a 0 or 1 "
            f"({', '.join(self._partly_blank[:3])})"
        )
        return [Finding("unclear_label", message, self._partly_blank)]


def _check_name(name: str) -> None:
    if SEPARATOR in name:
        raise InputError(
            f"label_columns makes the class {name!r}, and {SEPARATOR!r} separates classes: rename the column"
        )
