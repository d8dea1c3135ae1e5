"""The settings of a run for its loggers; in TensorBoard as a row of the HPARAMS tab, beside what they led to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from sft_lightning.training.callbacks.external_loggers import read_external_runs
from sft_lightning.training.lightning_patches import get_event_writer

Settings = dict[str, int | float | str]
# Taken from the data when the model is made, so the config does not hold their values.
_LINKED = ("class_path", "init_args", "class_names", "num_classes", "image_shape")
# TensorBoard takes the columns of all runs from one of them, whichever it finds first, and shows the first five
# settings and metrics at once. So every run names the same first ones, those too that it does not have.
_FIRST = ("model", "model.backbone", "model.strategy", "model.optimizer.lr", "data.num_labels")
_MAY_LACK = ("model.backbone", "model.strategy", "model.feature_loss", "model.regularizer", "model.weights")
_METRICS = (
    "test/accuracy", "val/accuracy", "val/loss", "train/loss", "test/loss", "val/macro_f1", "val/calibration_error",
    "test/macro_f1", "test/calibration_error",
)  # fmt: skip


def flatten_settings(config: Any) -> Settings:
    """What distinguishes one run from another, flat.

    Args:
        config: The command's parsed config.
    """
    found: Settings = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            inner = value.get("init_args", value)
            if "class_path" in value:
                found[prefix] = str(value["class_path"]).rpartition(".")[2]
            for key, item in inner.items() if isinstance(inner, dict) else ():
                if key not in _LINKED:
                    walk(f"{prefix}.{key}", item)
        elif value is not None:
            found[prefix] = value if isinstance(value, (int, float, str)) else str(value)

    whole = config.as_dict()
    for name in ("model", "data", "seed_everything"):
        walk(name, whole.get(name))
    for name in ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val"):
        walk(f"trainer.{name}", whole.get("trainer", {}).get(name))
    return found


def log_settings(loggers: Sequence[Logger], found: Settings, folder: Path) -> None:
    """Gives the settings to all loggers, when a training starts.

    TensorBoard's metrics are those that are logged anyway, by their last value: `test` in the same folder fills its own
    columns of the row, without a second one.

    Args:
        loggers: Of the trainer.
        found: From `flatten_settings`.
        folder: Of the run, which other loggers are told.
    """
    started = read_external_runs(folder)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(found)  # hparams.yaml
            every = {**dict.fromkeys(_MAY_LACK, ""), **found}
            columns, row, _ = hparams(every, dict.fromkeys(_METRICS, 0.0))
            plugin = columns.value[0].metadata.plugin_data
            told = HParamsPluginData.FromString(plugin.content)
            for info in told.experiment.hparam_infos:
                info.differs = info.name in _FIRST  # those that do are shown first
            plugin.content = told.SerializeToString()
            _summaries(logger, columns, row)
        elif type(logger).__name__ not in started:  # MLflow refuses settings that a resumed run has changed
            logger.log_hyperparams({**found, "run_folder": str(folder)})


def log_end(loggers: Sequence[Logger]) -> None:
    """Says that the training was finished.

    Args:
        loggers: Of the trainer.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _summaries(logger, hparams({}, {})[2])


def _summaries(logger: TensorBoardLogger, *summaries: Any) -> None:
    writer = get_event_writer(logger)
    for summary in summaries:
        writer.add_summary(summary)
