"""Predictions as a CSV file, written batch by batch, so that memory does not grow with the number of examples."""

import csv
import filecmp
import json
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count, zip_longest
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed

from sft_lightning.data.contract import few_label_data
from sft_lightning.runs.lineage import hash_file
from sft_lightning.runs.lock import FileLock
from sft_lightning.training.frame_votes import name_votes, write_votes
from sft_lightning.utils.atomic import open_atomic, write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.spreadsheet import protect_row

PREDICTIONS = "predictions.csv"
LOCK = ".predictions.lock"
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8"}


class PredictionWriter(BasePredictionWriter):
    """Writes `path`, `predicted`, a probability for each class, and other outputs as columns of the same name.

    Each process writes its own file; at the end they are joined into `predictions.csv` atomically. Earlier predictions
    of another source or checkpoint are kept as `predictions_N.csv`; `predictions.json` names source and checkpoint.
    Where examples are frames of files, `predictions_by_file.csv` has the mean over those of each file.
    Cells that a spreadsheet would execute get a leading apostrophe.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Store the folder.

        Args:
            folder: Folder of `predictions.csv`; None for that of the run.
        """
        super().__init__("batch")
        self._folder = folder
        self._file: TextIO | None = None
        self._lock: FileLock | None = None
        self._part = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock the folder and open a file for each process."""
        folder = Path(self._folder or trainer.log_dir or trainer.default_root_dir)
        self._path = folder / PREDICTIONS
        self._part = _part_path(self._path, trainer.global_rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_lock(trainer, folder / LOCK)
            self._file = self._part.open("w", **_TEXT)
        except OSError as error:
            raise _write_error(self._path, error) from error
        self._writer = csv.writer(self._file)
        self._header: list[str] | None = None
        self._separator: str | None = None  # of the classes of an example; None where each has one
        self._counts = [0, 0]  # examples, and those marked as unlike the training data

    def _take_lock(self, trainer: Trainer, path: Path) -> None:
        """Lock the folder on behalf of all processes, before any of them empties a file there."""
        self._lock = FileLock(path)
        holder = self._lock.take() if trainer.is_global_zero else None
        holder = trainer.strategy.broadcast(holder)
        if holder is not None:
            raise InputError(
                f"predictions are being written to {str(path.parent)!r} by {holder}: wait until it has ended, or stop "
                f"it; two at once would mix their lines (if it is dead, remove {str(path)!r})"
            )

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
        """Write the rows of a batch."""
        if not isinstance(prediction, dict) or self._file is None:
            return
        indices: list[int] = prediction["indices"].tolist()
        columns = self.make_columns(trainer, pl_module, prediction, getattr(batch, "names", None) or indices)
        self._counts[0] += len(indices)
        self._counts[1] += columns.get("unlike_training", []).count("yes")
        try:
            if self._header is None:
                self._header = list(columns)
                self._writer.writerow(protect_row(self._header))
            self._writer.writerows(protect_row(row) for row in zip(*columns.values(), strict=True))
        except OSError as error:
            raise _write_error(self._path, error) from error

    def make_columns(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], names: Sequence[Any]
    ) -> dict[str, list[Any]]:
        """Return the columns of a batch.

        Args:
            trainer: Trainer that predicts.
            pl_module: Module that made the prediction.
            prediction: What its `predict_step` returned.
            names: Names of the examples, or their positions.
        """
        columns: dict[str, list[Any]] = {"path": [*names]}
        probabilities = prediction.get("probabilities")
        if probabilities is not None:
            classes: list[str] = pl_module.class_names  # type: ignore[assignment]
            if (chosen := prediction.get("predicted")) is None:
                columns["predicted"] = [classes[i] for i in probabilities.argmax(1).tolist()]
            else:  # examples that have several classes
                data = few_label_data(trainer)
                self._separator = separator = getattr(data, "label_separator", None) or ";"
                rows = ([name for name, is_in in zip(classes, row, strict=True) if is_in] for row in chosen.tolist())
                columns["predicted"] = [separator.join(row) or separator for row in rows]
            for name, column in zip(classes, probabilities.T.tolist(), strict=True):
                columns[f"p({name})"] = [f"{p:.6f}" for p in column]
        for name, value in prediction.items():
            if name not in ("indices", "probabilities", "predicted"):
                columns[name] = _format_cells(value)
        return columns

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the files of all processes, each of which has every world_size-th example."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            raise _write_error(self._path, error) from error
        self._file = None
        has_marks = "unlike_training" in (self._header or ())
        data = few_label_data(trainer)
        summaries = [(*self._counts, has_marks, (0, 0) if data is None else data.predict_listed)]
        if trainer.world_size > 1:  # also waits until all files are written
            summaries *= trainer.world_size
            distributed.all_gather_object(summaries, summaries[0])
        listings = {listed for *_, listed in summaries}
        if len(listings - {(0, 0)}) > 1:
            self._part.unlink()
            raise InputError(
                "predict_source changed while it was read, so that processes went through different lists of files: "
                "predict again, or with --trainer.devices 1"
            )
        if trainer.is_global_zero:
            _join(self._path, trainer.world_size, describe_predictions(trainer))
            count, marked = (sum(counts) for counts in zip(*((a, b) for a, b, *_ in summaries), strict=True))
            note = (
                f", {marked:,} ({marked / count:.1%}) unlike the training data"
                if any(summary[2] for summary in summaries)
                else ""
            )
            counted = f"{count:,}" if data is None else data.input_spec.count(count)
            rank_zero_info(f"Predictions: {self._path}: {counted}{note}")
            if files := write_votes(self._path, self._separator):
                said = "1 file" if files == 1 else f"{files:,} files"
                rank_zero_info(f"Predictions: {name_votes(self._path)}: the mean over the frames of {said}")
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the file of this process and release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._part.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _format_cells(value: Tensor) -> list[str]:
    return [("yes" if v else "no") if isinstance(v, bool) else f"{v:.6g}" for v in value.tolist()]


def _write_error(path: Path, error: OSError) -> InputError:
    return InputError(f"{str(path)!r} cannot be written ({error.strerror}): free space or fix the permissions")


def describe_predictions(trainer: Trainer) -> dict[str, str | None]:
    """Return source and checkpoint of the predictions."""
    data = few_label_data(trainer)
    path = Path(trainer.ckpt_path) if trainer.ckpt_path else None
    return {
        "source": None if data is None else data.predict_name,
        "checkpoint": None if path is None else str(path),
        "checkpoint_sha256": hash_file(path) if path is not None and path.is_file() else None,
    }


def _keep_earlier(path: Path, staged: Path, description: dict[str, str | None]) -> None:
    """Rename earlier predictions of another source or checkpoint."""
    old = _key(_read_description(path))
    is_known = None not in old
    if not path.is_file() or (is_known and old == _key(description)) or filecmp.cmp(path, staged, shallow=False):
        return
    for k in count(1):
        target = path.with_stem(f"{path.stem}_{k}")
        if not target.exists() or (is_known and _key(_read_description(target)) == old):
            break
    path.replace(target)
    if name_votes(path).is_file():
        name_votes(path).replace(name_votes(target))
    if path.with_suffix(".json").is_file():
        path.with_suffix(".json").replace(target.with_suffix(".json"))
    rank_zero_info(f"Predictions: those {f'of {old[0]!r}' if old[0] else 'that were there'} are kept as {target}.")


def _read_description(path: Path) -> dict[str, Any]:
    """Read source and checkpoint of a file of predictions; empty if unknown."""
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return description if isinstance(description, dict) else {}


def _key(description: dict[str, Any]) -> tuple[Any, Any]:
    return description.get("source"), description.get("checkpoint_sha256")


def _join(path: Path, world_size: int, description: dict[str, str | None]) -> None:
    """Join the files of all processes into one."""
    parts = [_part_path(path, rank) for rank in range(world_size)]
    with open_atomic(path) as staged:
        if world_size == 1:
            parts[0].replace(staged)
        else:
            _interleave(parts, staged)
            for part in parts:
                part.unlink()
        if not staged.stat().st_size:  # no example could be read
            staged.write_text("path\n", encoding="utf-8")
        _keep_earlier(path, staged, description)
        path.with_suffix(".json").unlink(missing_ok=True)  # it must never describe other predictions
    if any(description.values()):
        write_json(path.with_suffix(".json"), description)


def _interleave(parts: Sequence[Path], target: Path) -> None:
    """Write the rows of all files in the order of the examples, of which each process has every n-th."""
    with ExitStack() as stack:
        writer = csv.writer(stack.enter_context(target.open("w", **_TEXT)))
        files = [csv.reader(stack.enter_context(part.open(**_TEXT))) for part in parts]
        headers = [next(file, []) for file in files]
        writer.writerows(header for header in [h for h in headers if h][:1])
        for lines in zip_longest(*files):
            writer.writerows(line for line in lines if line is not None)


def _part_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank{rank}")
