"""Columns of a table of files: find the known ones."""

from collections.abc import Iterable, Sequence

from sft_lightning.data.column_names import KNOWN, is_synonym, normalize_name
from sft_lightning.data.unused_columns import UnusedColumns
from sft_lightning.utils.errors import InputError


class TableColumns:
    """Columns of one table.

    Attributes:
        positions: Position of each known column.
        class_positions: Position of each column of 0 and 1.
        unused: The other columns.
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
        self._names = [name.strip() for name in names]
        plain = [normalize_name(name) for name in names]
        for i, name in enumerate(plain):
            if name and name in plain[:i]:
                raise InputError(
                    f"{self._where} has the column {name!r} twice (columns {plain.index(name) + 1} and {i + 1}): "
                    "keep one, or rename one"
                )
        self.positions = {name: plain.index(name) for name in known if name in plain}
        if missing := [name for name in needed if name not in self.positions]:
            texts = ": of texts, use TextDataModule; `solve` takes them, too" if "text" in plain else ""
            optional = "".join(f"[,{name}]" for name in known if name not in needed)
            raise InputError(
                f"{self._where} lacks the column {' and '.join(map(repr, missing))}; its columns are "
                f"{', '.join(map(repr, self._names)) or 'none'}, needed are "
                f"{','.join(needed)}{optional}"
                f"{self._suggest_names(missing) or texts}"
            )
        self.class_positions = {name: [*names].index(name) for name in classes}
        used = {*self.positions.values(), *self.class_positions.values()}
        is_examined = bool({"label", "mask", "class"} & {*needed} or self.class_positions)
        rest = [i for i in range(len(names)) if i not in used] if is_examined else []
        self.unused = UnusedColumns(self._where, names, rest, self.positions, known)

    def _suggest_names(self, missing: Sequence[str]) -> str:
        pairs = [(name, kind) for kind in missing for name in self._names if is_synonym(name, kind)]
        return f": rename {' and '.join(f'{name!r} to {kind!r}' for name, kind in pairs)}" if pairs else ""
