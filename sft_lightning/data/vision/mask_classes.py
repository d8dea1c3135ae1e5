"""Classes of masks: from settings, from a file beside the data, or from the masks themselves."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.class_names import format_class_names
from sft_lightning.data.vision.masks import IGNORED, MOST_CLASSES, Color, MaskCoding, pack_color, read_values
from sft_lightning.utils.errors import InputError, did_you_mean

IGNORE = "ignore"  # name in `class_colors` of the colors that are not counted
CLASS_FILES = ("classes.txt", "classes.csv")


def make_coding(
    folder: Path,
    masks: Iterable[Path],
    class_names: Sequence[str] | None,
    class_colors: Mapping[str, Sequence[int]] | None,
    ignore_index: int,
) -> MaskCoding:
    """Find out which classes the values of masks mean.

    Args:
        folder: Folder that may hold `classes.txt`, one name a line from number 0 on, or `classes.csv` with the columns
            name[,r,g,b].
        masks: Paths of all masks, whose values number the classes where nothing names them.
        class_names: Names in the order of the numbers that networks give them; None for that of the data.
        class_colors: Color of each class; None where masks hold numbers, or `classes.csv` has the colors.
        ignore_index: Value of pixels that are not counted.

    Raises:
        InputError: A file of names or a color is damaged, a class has no name, or there are fewer than two classes.
    """
    names, colors = read_class_file(folder)
    colors = check_colors(class_colors) if class_colors is not None else colors
    if colors is not None:
        known = [name for name in colors if name != IGNORE]
        ordered = order_names(class_names, known, "class_colors" if class_colors is not None else "classes.csv")
        numbers = {
            pack_color(color): IGNORED if name == IGNORE else ordered.index(name) for name, color in colors.items()
        }
        palette = {ordered.index(name): colors[name] for name in known}
        return check_count(MaskCoding(tuple(ordered), numbers, True, ignore_index, palette), folder)
    if names is not None:
        ordered = order_names(class_names, names, "classes.txt")
        numbers = {value: ordered.index(name) for value, name in enumerate(names)}
        return check_count(MaskCoding(tuple(ordered), numbers, False, ignore_index), folder)
    if class_names is not None:
        ordered, largest = [*class_names], None
    else:
        ordered, largest = _count_classes(masks, ignore_index)
    numbers = {value: value for value in range(len(ordered))}
    return check_count(MaskCoding(tuple(ordered), numbers, False, ignore_index, largest=largest), folder)


def order_names(class_names: Sequence[str] | None, known: Sequence[str], where: str) -> list[str]:
    """Return the names in the order of the user, or of the data; classes that the data lacks may be among them.

    Args:
        class_names: Names in the order of the user; None for that of the data.
        known: Names that the data has.
        where: What names them, for messages.

    Raises:
        InputError: The user left one out.
    """
    if class_names is None:
        return [*known]
    for name in known:
        if name not in class_names:
            raise InputError(
                f"the class {name!r} of {where} is not known to the run or class_names"
                f"{did_you_mean(name, [*class_names])}; known are {format_class_names(class_names)}: correct it, add "
                "it to class_names, or train a new run on this source"
            )
    return [*class_names]


def check_count(coding: MaskCoding, folder: Path) -> MaskCoding:
    """Return a coding after checking that it has two classes or more, of different names.

    Args:
        coding: Coding of masks.
        folder: Source, for messages.

    Raises:
        InputError: A name is there twice, or there are too few or too many classes.
    """
    names = coding.class_names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"the class {twice!r} is listed twice for source {str(folder)!r}: give each class its own name"
        )
    if not 2 <= len(names) <= MOST_CLASSES:
        raise InputError(
            f"source {str(folder)!r} has {len(names)} class(es), and a network learns at least 2 and at most "
            f"{MOST_CLASSES:,}: list them in class_names, background included"
        )
    return coding


def check_colors(colors: Mapping[str, Sequence[int]]) -> dict[str, Color]:
    """Check colors of classes, and return them by name.

    Args:
        colors: Red, green and blue of each class from 0 to 255; `ignore` names the color of what is not counted.

    Raises:
        InputError: A color is not three numbers from 0 to 255, or two classes have one.
    """
    made: dict[str, Color] = {}
    for name, color in colors.items():
        values = [*color] if isinstance(color, list | tuple) else []
        if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
            raise InputError(
                f"class_colors[{name}] is {color}: give three numbers from 0 to 255, such as [128, 64, 128]"
            )
        rgb = (values[0], values[1], values[2])
        if rgb in made.values():
            other = next(known for known, one in made.items() if one == rgb)
            raise InputError(f"class_colors gives {list(rgb)} to {other!r} and to {name!r}: give each its own color")
        made[str(name)] = rgb
    return made


def read_class_file(folder: Path) -> tuple[list[str] | None, dict[str, Color] | None]:
    """Read `classes.txt` or `classes.csv` of a folder.

    Args:
        folder: Folder of the data.

    Returns:
        Names in the order of their numbers or None, and colors by name or None.

    Raises:
        InputError: The file is damaged.
    """
    text, table = (folder / name for name in CLASS_FILES)
    try:
        if text.is_file():
            names = [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines()]
            while names and not names[-1]:
                names.pop()
            if not all(names) or not names:
                raise InputError(
                    f"'{show_path(text)}' has a blank line: write one class a line, the first has number 0"
                )
            return names, None
        if table.is_file():
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = [{(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
                        for row in csv.DictReader(file)]  # fmt: skip
            return _from_rows(table, rows)
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(
            f"the names of classes beside {str(folder)!r} cannot be read ({error}): save them as UTF-8"
        ) from error
    return None, None


def _from_rows(table: Path, rows: Sequence[Mapping[str, str]]) -> tuple[list[str] | None, dict[str, Color] | None]:
    where = f"'{show_path(table)}'"
    if not rows or not all(row.get("name") for row in rows):
        raise InputError(f"{where} needs a column 'name' with the name of a class in each line: add it")
    names = [row["name"] for row in rows]
    if not all({"r", "g", "b"} <= row.keys() for row in rows):
        return names, None
    try:
        colors = {row["name"]: [int(row[channel]) for channel in "rgb"] for row in rows}
    except ValueError as error:
        raise InputError(
            f"{where} has a color that is not a number ({error}): give r, g and b from 0 to 255"
        ) from error
    return None, check_colors(colors)


def _count_classes(masks: Iterable[Path], ignore_index: int) -> tuple[list[str], Path | None]:
    """Return numbers as names, up to the largest value of all masks, and the first mask that has it."""
    values: set[int] = set()
    first: dict[int, Path] = {}
    for path in masks:
        try:
            new = {int(value) for value in np.unique(read_values(path, by_color=False))} - values
        except OSError as error:
            if "class_colors" in str(error):
                raise InputError(f"mask '{show_path(path)}': {error}") from error
            continue  # reported with all others, by the rule for unreadable files
        first |= dict.fromkeys(new, path)
        values |= new
    if values <= {0, ignore_index} and ignore_index in values:
        raise InputError(
            f"the masks hold only 0 and {ignore_index} (such as '{show_path(first[ignore_index])}'), and ignore_index "
            f"{ignore_index} is not counted: if {ignore_index} is a class, give class_colors, such as {{background: "
            f"[0, 0, 0], object: [{ignore_index}, {ignore_index}, {ignore_index}]}}"
        )
    values.discard(ignore_index)
    highest = max(values, default=-1)
    if highest >= MOST_CLASSES or min(values, default=0) < 0:
        where = show_path(first[highest if highest >= MOST_CLASSES else min(values)])
        raise InputError(
            f"mask '{where}' has the value {highest}, which cannot be the number of a class: list the classes in "
            "class_names, or give class_colors"
        )
    return [str(value) for value in range(highest + 1)], first.get(highest)
