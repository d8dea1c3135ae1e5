"""Columns of a table: find the known ones, and report what the others seem to be."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from sft_lightning.data.issues import Finding
from sft_lightning.data.source import split_of_name
from sft_lightning.utils.errors import InputError

KNOWN = ("path", "label", "split", "group")
_FEW = 12  # largest number of distinct values in a column of splits
# Names that other programs use, without the endings that `_get_stem` strips.
_SYNONYMS = {
    "path": {"path", "filepath", "file", "image", "imagepath", "imagefile", "img", "imgpath", "fname", "url", "id"},
    "label": {"label", "class", "classlabel", "category", "target", "y", "annotation", "groundtruth", "gt"},
    "split": {
        "split",
        "datasplit",
        "set",
        "subset",
        "fold",
        "partition",
        "phase",
        "stage",
        "usage",
        "dataset",
        "kfold",
        "cv",
    },
    "group": {"group", "patient", "subject", "participant", "person", "individual", "video", "clip", "mrn", "pid"},
}
# Names of columns that may hold groups, but often do not.
_PERHAPS_GROUP = {
    "case",
    "study",
    "series",
    "session",
    "scan",
    "site",
    "location",
    "camera",
    "scene",
    "user",
    "slide",
    "animal",
    "lesion",
    "specimen",
    "donor",
    "plant",
    "tree",
    "plot",
    "field",
    "farm",
    "plate",
    "well",
    "sequence",
    "track",
    "burst",
    "identity",
}
# Any other name with the ending of an identifier: `fish_id`, `fishId`, `fish uuid`.
_IDENTIFIER = re.compile(r".*(?:[\W_](?:uu|u)?id|[a-z](?:ID|Id|UID|UUID))", re.ASCII)
_ENDINGS = re.compile("(ids?|uid|number|num|no|nr|index|idx|code|key|name|s)$")
_YES_OR_NO = {"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"}


class TableColumns:
    """Columns of one table.

    Attributes:
        positions: Position of each known column.
        class_positions: Position of each column of 0 and 1.
        watched: Positions of the other columns whose values `watch` takes.
    """

    def __init__(
        self,
        table: str,
        names: Sequence[str],
        needed: Sequence[str],
        known: Sequence[str] = KNOWN,
        classes: Iterable[str] = (),
    ) -> None:
        """Find the known columns; case, spaces and quotes make no difference.

        Args:
            table: Path of the table, for messages.
            names: Names of the columns, in their order.
            needed: Names of required columns; unknown columns are examined only if `label`, `mask` or `class` is one.
            known: Names of columns that are read.
            classes: Names of columns of 0 and 1 in place of the column `label`.

        Raises:
            InputError: A required column is missing, or a name is repeated.
        """
        self._where = f"manifest {table!r}"
        self._names, self._known = [name.strip() for name in names], known
        plain = [_normalize(name) for name in names]
        for i, name in enumerate(plain):
            if name and name in plain[:i]:
                raise InputError(
                    f"{self._where} has the column {name!r} twice (columns {plain.index(name) + 1} and {i + 1}): "
                    "keep one, or rename one"
                )
        self.positions = {name: plain.index(name) for name in known if name in plain}
        if missing := [name for name in needed if name not in self.positions]:
            texts = ": of texts, use TextDataModule; `solve` takes them, too" if "text" in plain else ""
            raise InputError(
                f"{self._where} lacks the column {' and '.join(map(repr, missing))}; its columns are "
                f"{', '.join(map(repr, self._names)) or 'none'}, needed are "
                f"{','.join(needed) if len(needed) > 1 else 'path,label'}[,split][,group]"
                f"{self._suggest_names(missing) or texts}"
            )
        self.class_positions = {name: [*names].index(name) for name in classes}
        used = {*self.positions.values(), *self.class_positions.values()}
        is_examined = bool({"label", "mask", "class"} & {*needed} or self.class_positions)
        rest = [i for i in range(len(names)) if i not in used] if is_examined else []
        self._others = [i for i in rest if self._names[i]]
        self._values: dict[int, set[str]] = {i: set() for i in self._others}
        self._repeats: set[int] = set()
        self.watched = list(self._others)

    def watch_only(self, texts: Iterable[int], numbers: Iterable[int]) -> None:
        """Watch only columns of text, and columns of numbers that are named like splits or groups.

        Args:
            texts: Positions of columns of text.
            numbers: Positions of columns of numbers.
        """
        named = {i for i in numbers if self._guess_kind(i) in ("split", "group") or self._guess_single_split(i)}
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
            is_done = i in self._repeats if self._guess_kind(i) == "group" else True
            if len(values_before) > _FEW and is_done:
                done.append(i)
        if done:
            self.watched = [i for i in self.watched if i not in done]

    def describe_unused(self) -> list[Finding]:
        """Return findings about the unused columns.

        Raises:
            InputError: A column holds splits or groups under another name.
        """
        findings, ignored = [], []
        for i in self._others:
            name, kind = self._names[i], self._guess_kind(i)
            if "split" not in self.positions:
                self._refuse_split(i)
            is_group = kind == "group" and _get_stem(name) not in _PERHAPS_GROUP
            if is_group and "group" not in self.positions and i in self._repeats:
                raise InputError(
                    f"{self._where}: the column {name!r} is not known, but its values repeat like groups: rename it to "
                    "'group' to keep the examples of a group in one split, or remove it"
                )
            if kind is None and i in self._repeats and _IDENTIFIER.fullmatch(name) and len(self._values[i]) > 1:
                kind = "group"
            if kind and kind not in self.positions:
                remedy = f"if it holds the {kind} of each example, call it {kind!r}"
                message = f"{self._where}: the column {name!r} is ignored; {remedy}"
                findings.append(Finding("ignored", message, [name]))
            else:
                ignored.append(name)
        if ignored:
            listed = ", ".join(map(repr, ignored[:_FEW])) + (", ..." if len(ignored) > _FEW else "")
            what = "column is" if len(ignored) == 1 else "columns are"
            message = f"{self._where}: the {what} ignored: {listed} (known are {', '.join(self._known)})"
            findings.append(Finding("ignored", message, ignored))
        return findings

    def _refuse_split(self, i: int) -> None:
        name, values = self._names[i], self._values[i]
        splits = {split_of_name(value) for value in values}
        are_splits = None not in splits and splits != {"train"}
        # A column `Usage` may hold values other than `Training`, such as `PublicTest`.
        is_named = self._guess_kind(i) == "split" and len(values) > 1 and splits != {None}
        if splits and (are_splits or is_named) and len(values) <= _FEW:
            raise InputError(
                f"{self._where}: the column {name!r} is not known, but its values ({', '.join(sorted(values))}) are "
                "splits: rename it to 'split', or rename the values or remove the column if they mean something else"
            )
        of_one = self._guess_single_split(i)
        if of_one and values and {value.casefold() for value in values} <= _YES_OR_NO:
            raise InputError(
                f"{self._where}: the column {name!r} is not known, but seems to say which examples are for {of_one!r}: "
                "make a column 'split' with train, val and test of it, or remove it"
            )

    def _guess_single_split(self, i: int) -> str | None:
        """Return the split that a yes/no column marks, such as `test` for "is_test"."""
        return split_of_name(re.sub(r"^(is|in|for)[\W_]*", "", _normalize(self._names[i])))

    def _guess_kind(self, i: int) -> str | None:
        """Return which known column this one may be by its name."""
        stem = _get_stem(self._names[i])
        kind = next((kind for kind, stems in _SYNONYMS.items() if stem in stems), None)
        return kind or ("group" if stem in _PERHAPS_GROUP else None)

    def _suggest_names(self, missing: Sequence[str]) -> str:
        pairs = [(name, kind) for kind in missing for name in self._names if _get_stem(name) in _SYNONYMS.get(kind, ())]
        return f": rename {' and '.join(f'{name!r} to {kind!r}' for name, kind in pairs)}" if pairs else ""


def count_known(names: Sequence[str]) -> int:
    """Return the number of columns with a known name or a synonym of one.

    Args:
        names: Names of columns.
    """
    return sum(_normalize(name) in KNOWN or _get_stem(name) in set().union(*_SYNONYMS.values()) for name in names)


def _normalize(name: str) -> str:
    """Return a name in lower case without invisible characters, outer spaces and quotes."""
    composed = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in composed if unicodedata.category(c) not in ("Cf", "Cc")).strip(" '\"\u201c\u201d")


def _get_stem(name: str) -> str:
    """Return the main word of a name, such as `patient` for "Patient_ID"."""
    word = re.sub(r"[\W_]+", "", _normalize(name))
    is_known = word in _PERHAPS_GROUP or any(word in synonyms for synonyms in _SYNONYMS.values())
    return word if is_known else _ENDINGS.sub("", word) or word
