"""Columns of a table that are not read: what they seem to hold, and what is refused because it would be missed."""

import re
from collections.abc import Collection, Iterable, Sequence

from sft_lightning.data.column_names import guess_kind, is_vague, normalize_name
from sft_lightning.data.issues import Finding
from sft_lightning.data.source import split_of_name
from sft_lightning.utils.errors import InputError

_FEW = 12  # largest number of distinct values in a column of splits
# Any other name with the ending of an identifier: `fish_id`, `fishId`, `fish uuid`.
_IDENTIFIER = re.compile(r".*(?:[\W_](?:uu|u)?id|[a-z](?:ID|Id|UID|UUID))", re.ASCII)
_YES_OR_NO = {"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"}


class UnusedColumns:
    """Columns that are not read, whose values are watched for splits and groups under another name.

    Attributes:
        watched: Positions of the columns whose values `watch` takes.
    """

    def __init__(
        self, where: str, names: Sequence[str], unused: Iterable[int], found: Collection[str], known: Sequence[str],
        has_settings: bool = False,
    ) -> None:  # fmt: skip
        """Begin without values.

        Args:
            where: Kind and name of the table.
            names: Names of its columns.
            unused: Positions of the columns that are not read.
            found: Known columns that the table has.
            known: Names of all known columns, for messages.
            has_settings: Whether settings such as `group_column` name columns; otherwise they have fixed names.
        """
        self._where, self._names, self._found, self._known = where, [name.strip() for name in names], found, known
        self._has_settings = has_settings
        self._others = [i for i in unused if self._names[i]]
        self._values: dict[int, set[str]] = {i: set() for i in self._others}
        self._repeats: set[int] = set()
        self.watched = list(self._others)

    def watch_only(self, texts: Iterable[int], numbers: Iterable[int]) -> None:
        """Watch only columns of text, and columns of numbers that are named like splits or groups.

        Args:
            texts: Positions of columns of text.
            numbers: Positions of columns of numbers.
        """
        named = {i for i in numbers if self._guess(i) in ("split", "group") or self._guess_single_split(i)}
        self.watched = [i for i in self.watched if i in named.union(texts)]

    def watch(self, values: Sequence[str]) -> None:
        """Take the values of one row into account.

        Args:
            values: Values of the columns `watched`, in their order.
        """
        done = []
        for i, value in zip(self.watched, values, strict=True):
            if not value:
                continue
            values_before = self._values[i]
            if value in values_before:
                self._repeats.add(i)
            values_before.add(value)
            is_done = i in self._repeats if self._guess(i) == "group" else True
            if len(values_before) > _FEW and is_done:
                done.append(i)
        if done:
            self.watched = [i for i in self.watched if i not in done]

    def describe(self) -> list[Finding]:
        """Return findings about the columns.

        Raises:
            InputError: A column holds splits or groups under another name.
        """
        findings, ignored = [], []
        for i in self._others:
            name, kind = self._names[i], self._guess(i)
            if "split" not in self._found:
                self._refuse_split(i)
            is_group = kind == "group" and not is_vague(name)
            if is_group and "group" not in self._found and i in self._repeats:
                raise InputError(
                    f"{self._where}: the column {name!r} is not known, but its values repeat like groups: "
                    f"{self._remedy('group')} to keep the examples of a group in one split, or remove it"
                )
            if kind is None and i in self._repeats and _IDENTIFIER.fullmatch(name) and len(self._values[i]) > 1:
                kind = "group"
            if kind and kind not in self._found:
                remedy = f"name it with {kind}_column" if self._has_settings else f"call it {kind!r}"
                message = f"{self._where}: the column {name!r} is ignored; if it holds the {kind} of each example, "
                findings.append(Finding("ignored", message + remedy, [name]))
            else:
                ignored.append(name)
        if ignored:
            listed = ", ".join(map(repr, ignored[:_FEW])) + (", ..." if len(ignored) > _FEW else "")
            what = "column is" if len(ignored) == 1 else "columns are"
            message = f"{self._where}: the {what} ignored: {listed} (known are {', '.join(self._known)})"
            findings.append(Finding("ignored", message, ignored))
        return findings

    def _remedy(self, kind: str) -> str:
        return f"set {kind}_column" if self._has_settings else f"rename it to {kind!r}"

    def _refuse_split(self, i: int) -> None:
        name, values = self._names[i], self._values[i]
        splits = {split_of_name(value) for value in values}
        are_splits = None not in splits and splits != {"train"}
        # A column `Usage` may hold values other than `Training`, such as `PublicTest`.
        is_named = self._guess(i) == "split" and len(values) > 1 and splits != {None}
        if splits and (are_splits or is_named) and len(values) <= _FEW:
            raise InputError(
                f"{self._where}: the column {name!r} is not known, but its values ({', '.join(sorted(values))}) are "
                f"splits: {self._remedy('split')}, or rename the values or remove the column if they mean something "
                "else"
            )
        of_one = self._guess_single_split(i)
        if of_one and values and {value.casefold() for value in values} <= _YES_OR_NO:
            raise InputError(
                f"{self._where}: the column {name!r} is not known, but seems to say which examples are for {of_one!r}: "
                "make a column 'split' with train, val and test of it, or remove it"
            )

    def _guess(self, i: int) -> str | None:
        return guess_kind(self._names[i])

    def _guess_single_split(self, i: int) -> str | None:
        """Return the split that a yes/no column marks, such as `test` for "is_test"."""
        return split_of_name(re.sub(r"^(is|in|for)[\W_]*", "", normalize_name(self._names[i])))
