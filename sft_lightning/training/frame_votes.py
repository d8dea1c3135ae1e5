"""Predictions of files of several frames, such as volumes: the mean over the predictions of their frames."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_lightning.data.frames import split_name
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.spreadsheet import format_csv, restore_cell


@dataclass
class _File:
    """Sums over the frames of a file: of their number, of probabilities, and of how many have each class, (C,)."""

    probabilities: NDArray[np.float64]
    frames: int = 0
    sets: dict[str, int] = field(default_factory=dict)


def name_votes(predictions: Path) -> Path:
    """Return the path of the predictions of files beside those of frames.

    Args:
        predictions: Path of the predictions of frames.
    """
    return predictions.with_stem(f"{predictions.stem}_by_file")


def write_votes(predictions: Path, separator: str | None = None) -> int:
    """Write a row for each file of several frames beside the predictions of frames, and return their number.

    `predicted` is the class of the largest mean probability. Where examples have several classes, it is those that at
    least half of the frames have. Nothing is written where no example is a frame or has probabilities, and an earlier
    file is removed.

    Args:
        predictions: Path of a CSV whose first column names the frames, with `predicted` and `p(CLASS)`.
        separator: Separator of the classes of an example; None where each has one.

    Raises:
        InputError: The file cannot be written.
    """
    path = name_votes(predictions)
    path.unlink(missing_ok=True)
    files: dict[str, _File] = {}
    with predictions.open(newline="", encoding="utf-8") as opened:
        rows = csv.reader(opened)
        header = [restore_cell(cell) for cell in next(rows, [])]
        columns = [k for k, name in enumerate(header) if name.startswith("p(") and name.endswith(")")]
        if not columns or "predicted" not in header:
            return 0
        for row in rows:
            name, number = split_name(restore_cell(row[0]))
            p = np.array([row[k] for k in columns], dtype=np.float64)
            if number is None or np.isnan(p).any():  # those of an unreadable frame are unknown
                continue
            file = files.setdefault(name, _File(np.zeros(len(columns))))
            file.probabilities += p
            file.frames += 1
            chosen = restore_cell(row[header.index("predicted")])
            for one in [] if separator is None else chosen.split(separator):
                file.sets[one] = file.sets.get(one, 0) + 1
    if not files:
        return 0
    classes = [header[k][2:-1] for k in columns]
    made = [["path", "frames", "predicted", *(header[k] for k in columns)]]
    for name, file in files.items():
        mean = file.probabilities / file.frames
        decided = classes[int(mean.argmax())]
        if separator is not None:
            decided = separator.join(one for one in classes if 2 * file.sets.get(one, 0) >= file.frames) or separator
        made.append([name, str(file.frames), decided, *(f"{p:.6f}" for p in mean)])
    write_text(path, format_csv(made))
    return len(files)
