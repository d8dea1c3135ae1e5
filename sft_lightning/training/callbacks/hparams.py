"""Hyperparameters of a run for its loggers; in TensorBoard a row of the HPARAMS tab with the resulting metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from sft_lightning.training.callbacks.external_loggers import read_external_runs
from sft_lightning.utils.lightning_patches import get_event_writer

Settings = dict[str, int | float | str]
# Linked from the data when the model is built, so the config does not have their values.
_LINKED = ("class_path", "init_args", "class_names", "num_classes", "target", "input_spec", "image_shape")
# TensorBoard takes the columns of all runs from whichever run it finds first, and shows the first five settings and
# metrics. So every run names the same first ones, including those that it lacks.
_FIRST = ("model", "model.backbone", "model.strategy", "model.optimizer.lr", "data.num_labels")
_MAY_LACK = ("model.backbone", "model.strategy", "model.feature_loss", "model.regularizer", "model.weights")
_METRICS = (
    "test/accuracy", "val/accuracy", "val/loss", "train/loss", "test/loss", "val/macro_f1", "val/calibration_error",
    "test/macro_f1", "test/calibration_error", "val/balanced_accuracy", "test/balanced_accuracy",
    "val/mean_average_precision", "test/mean_average_precision", "val/mean_iou", "test/mean_iou",
)  # fmt: skip


def flatten_settings(config: Any) -> Settings:
    """Flatten the settings that distinguish one run from another.

    Args:
        config: Parsed config of the command.
    """
    settings: Settings = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            inner = value.get("init_args", value)
            if "class_path" in value:
                settings[prefix] = str(value["class_path"]).rpartition(".")[2]
            for key, item in inner.items() if isinstance(inner, dict) else ():
                if key not in _LINKED:
                    walk(f"{prefix}.{key}", item)
        elif value is not None:
            settings[prefix] = value if isinstance(value, (int, float, str)) else str(value)

    sections = config.as_dict()
    for name in ("model", "data", "seed_everything"):
        walk(name, sections.get(name))
    for name in ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val"):
        walk(f"trainer.{name}", sections.get("trainer", {}).get(name))
    return settings


def log_settings(loggers: Sequence[Logger], values: Settings, folder: Path) -> None:
    """Log the settings with all loggers when a training starts.

    TensorBoard shows the last values of metrics that are logged anyway, so `test` in the same folder fills its columns
    of the same row.

    Args:
        loggers: Loggers of the trainer.
        values: Settings from `flatten_settings`.
        folder: Folder of the run, which external loggers record, too.
    """
    external_runs = read_external_runs(folder)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(values)  # hparams.yaml
            all_values = {**dict.fromkeys(_MAY_LACK, ""), **values}
            columns, row, _ = hparams(all_values, dict.fromkeys(_METRICS, 0.0))
            plugin = columns.value[0].metadata.plugin_data
            content = HParamsPluginData.FromString(plugin.content)
            for info in content.experiment.hparam_infos:
                info.differs = info.name in _FIRST  # TensorBoard shows these first
            plugin.content = content.SerializeToString()
            _add_summaries(logger, columns, row)
        elif type(logger).__name__ not in external_runs:  # MLflow refuses changed settings of a resumed run
            logger.log_hyperparams({**values, "run_folder": str(folder)})


def log_end(loggers: Sequence[Logger]) -> None:
    """Log that the training has finished.

    Args:
        loggers: Loggers of the trainer.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _add_summaries(logger, hparams({}, {})[2])


def _add_summaries(logger: TensorBoardLogger, *summaries: Any) -> None:
    writer = get_event_writer(logger)
    for summary in summaries:
        writer.add_summary(summary)
