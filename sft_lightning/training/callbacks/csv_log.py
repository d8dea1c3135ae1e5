"""Metrics as a CSV beside TensorBoard's files: step, metric, value; a resumed run goes on where it stopped."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from sft_lightning.training.callbacks.validation_log import rename_validation_metrics
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError

Curves = dict[str, list[tuple[int, float]]]


class MetricsCSV(Logger):
    """Appends, unlike Lightning's own, which deletes what an earlier part of the run has written."""

    FILE = "metrics.csv"

    def __init__(self, folder: str, apart: bool = False) -> None:
        """Writes nothing yet.

        Args:
            folder: Of the run.
            apart: Whether validation metrics are to stand apart from those of the training (the command `validate`).
        """
        super().__init__()
        self.folder, self._apart = Path(folder), apart

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.parent.name

    @property
    def version(self) -> str:
        """Of the run."""
        return self.folder.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a line for each metric.

        Args:
            metrics: By name.
            step: Optimizer step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.FILE
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["step", "metric", "value"])
            named = rename_validation_metrics(metrics) if self._apart else metrics
            rows.writerows([step, name, value] for name, value in named.items() if name != "epoch")

    def drop_after(self, step: int) -> None:
        """Leaves out what was logged after a checkpoint: a run that goes on from there logs it again.

        Args:
            step: Of the checkpoint; the log counts steps from 0.

        Raises:
            InputError: The file is damaged.
        """
        path = self.folder / self.FILE
        if not path.is_file():
            return
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) < step]
        except ValueError as error:
            raise InputError(f"{str(path)!r} is damaged ({error}): remove it to go on without") from error
        if kept != lines:
            write_text(path, "".join([head, *kept]))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder has its config."""


def read_curves(folder: Path) -> Curves | None:
    """Steps and values by metric; None where `metrics.csv` is missing, or no such file.

    Args:
        folder: Of the run.
    """
    found: Curves = {}
    try:
        with (folder / MetricsCSV.FILE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None
    return found
