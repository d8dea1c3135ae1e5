"""Metrics as a CSV file beside TensorBoard's: step, metric, value."""

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
    """Logger that appends to `metrics.csv`; Lightning's own deletes the metrics of the run before it was resumed."""

    FILE = "metrics.csv"

    def __init__(self, folder: str, apart: bool = False) -> None:
        """Store the settings; the first metrics create the file.

        Args:
            folder: Folder of the run.
            apart: Whether to log validation metrics separately from those of the training (command `validate`).
        """
        super().__init__()
        self.folder, self._apart = Path(folder), apart

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.parent.name

    @property
    def version(self) -> str:
        """Version of the run."""
        return self.folder.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row for each metric.

        Args:
            metrics: Values by name.
            step: Number of the optimizer step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.FILE
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["step", "metric", "value"])
            renamed = rename_validation_metrics(metrics) if self._apart else metrics
            rows.writerows([step, name, value] for name, value in renamed.items() if name != "epoch")

    def drop_after(self, step: int) -> None:
        """Drop the rows from a step on, which a run that resumes there logs again.

        Args:
            step: Step of the checkpoint; the log counts steps from 0.

        Raises:
            InputError: The file is damaged.
        """
        path = self.folder / self.FILE
        if not path.is_file():
            return
        try:
            header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) < step]
        except ValueError as error:
            raise InputError(f"{str(path)!r} is damaged ({error}): remove it to go on without") from error
        if kept != lines:
            write_text(path, "".join([header, *kept]))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the folder of the run has its config."""


def read_curves(folder: Path) -> Curves | None:
    """Read steps and values by metric.

    Args:
        folder: Folder of the run.

    Returns:
        Curves by name of the metric, or None if `metrics.csv` is missing or invalid.
    """
    curves: Curves = {}
    try:
        with (folder / MetricsCSV.FILE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None
    return curves
