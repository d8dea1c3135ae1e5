"""Predictions as a CSV, written as they come, so that memory does not grow with the number of examples."""

import csv
import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

PREDICTIONS = "predictions.csv"


class PredictionWriter(BasePredictionWriter):
    """Writes `path`, `predicted` and a probability for each class; other outputs as columns of their own name."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Sets the place.

        Args:
            folder: Where `predictions.csv` goes; None for the run's folder.
        """
        super().__init__("batch")
        self._folder = folder
        self._file: TextIO | None = None
        self._path: Path | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens one file for each process."""
        folder = Path(self._folder or trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / PREDICTIONS
        self._file = _piece(self._path, trainer.global_rank).open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._header: list[str] | None = None

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the lines of one batch."""
        if not isinstance(prediction, dict) or self._file is None:
            return
        ids: Any = getattr(getattr(trainer, "datamodule", None), "predict_ids", None)
        indices: list[int] = prediction["indices"].tolist()
        columns: dict[str, list[Any]] = {"path": [ids[i] if ids else i for i in indices]}
        probabilities = prediction.get("probabilities")
        if probabilities is not None:
            names: list[str] = pl_module.class_names  # type: ignore[assignment]
            columns["predicted"] = [names[i] for i in probabilities.argmax(1).tolist()]
            for name, column in zip(names, probabilities.T.tolist(), strict=True):
                columns[f"p({name})"] = [f"{p:.6f}" for p in column]
        for name, value in prediction.items():
            if name not in ("indices", "probabilities"):
                columns[name] = [f"{v:.6g}" for v in value.tolist()]
        if self._header is None:
            self._header = list(columns)
            self._writer.writerow(self._header)
        self._writer.writerows(zip(*columns.values(), strict=True))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the files of all processes under one header; each has every world_size-th example."""
        if self._file is None or self._path is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        pieces = [_piece(self._path, rank) for rank in range(trainer.world_size)]
        if len(pieces) > 1:
            pieces = [_joined(pieces)]
        pieces[0].replace(self._path)
        rank_zero_info(f"Predictions: {self._path}")


def _joined(pieces: Sequence[Path]) -> Path:
    """One file with the lines of all in the order of the examples: each process has every n-th."""
    whole = pieces[0].with_suffix(".joined")
    with ExitStack() as stack:
        target = csv.writer(stack.enter_context(whole.open("w", newline="", encoding="utf-8")))
        files = [csv.reader(stack.enter_context(p.open(newline="", encoding="utf-8"))) for p in pieces]
        headers = [next(file, []) for file in files]
        target.writerows(header for header in headers[:1] if header)
        for lines in zip_longest(*files):
            target.writerows(line for line in lines if line is not None)
    for piece in pieces:
        piece.unlink()
    return whole


def _piece(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part{rank}")
