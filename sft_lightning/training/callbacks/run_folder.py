"""Records of a run in its folder: the config of each command, its provenance and lineage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from sft_lightning.data.contract import batch_request, few_label_data
from sft_lightning.data.issues import Finding
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import find_weights, read_metadata
from sft_lightning.runs.lineage import build_source_chain, hash_file, list_starts, write_lineage
from sft_lightning.runs.provenance import write_provenance
from sft_lightning.runs.record import Link
from sft_lightning.training.callbacks.external_loggers import record_external_runs
from sft_lightning.training.callbacks.hparams import flatten_settings, log_end, log_settings
from sft_lightning.training.callbacks.metrics_csv import MetricsCSV
from sft_lightning.training.oom import attach_oom_message
from sft_lightning.utils.lightning_patches import get_event_writer, set_logged_step


class RunFolder(SaveConfigCallback):
    """Saves one config for each command (`fit.yaml`, `test.yaml`), provenance and settings, and prints results.

    Lightning's own callback refuses a second `fit` in the same folder (of a resumed or requeued run), or lets `test`
    overwrite the config of the training. All of this is one callback because each callback costs every training step
    some 40 microseconds.
    """

    def __init__(self, parser: Any, config: Any, argv: Sequence[str] = (), **kwargs: Any) -> None:
        """Store the config and the command line.

        Args:
            parser: Parser of the command.
            config: Parsed config.
            argv: Arguments of the command line, the command first.
            kwargs: Further arguments of Lightning's callback.
        """
        super().__init__(parser, config, **{**kwargs, "overwrite": True})
        self.argv = argv

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the file after the command."""
        command = trainer.state.fn.value if trainer.state.fn else stage
        # A resumed run keeps its first config; the new one names the run's own checkpoint.
        resumed = command == "fit" and self.config.get("ckpt_path") is not None
        self.config_filename = "fit-resumed.yaml" if resumed else f"{command}.yaml"
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log metrics of a checkpoint at its step and epoch; Lightning would log them at 0, before all others."""
        if trainer.state.fn != TrainerFn.FITTING:
            trainer.fit_loop.epoch_progress.current.completed = int(checkpoint["epoch"])
            # A validation inside a training is logged at the last completed step, counted from 0.
            set_logged_step(trainer, max(0, int(checkpoint["global_step"]) - 1))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record provenance and settings, and print the size of the model, the device and the folder."""
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero and folder is not None and self.config.get("ckpt_path") is None:
            data = few_label_data(trainer)
            learns_labels = "labeled" in batch_request(pl_module).parts
            self._record(Path(folder), learns_labels, [] if data is None else data.request.leaks)
            write_provenance(Path(folder), self.argv, self.config.get("seed_everything"), trainer)
        if trainer.is_global_zero and folder is not None:
            log_settings(trainer.loggers, flatten_settings(self.config), Path(folder))
            record_external_runs(trainer.loggers, Path(folder))
            for encoder in (module for module in pl_module.modules() if isinstance(module, Encoder)):
                encoder.keep_files(Path(folder))
        count = sum(p.numel() for p in pl_module.parameters())
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        share = "all trained" if trained == count else f"{trained:,} trained at first"
        if not trained:
            share = "none trained by gradient steps"
        devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
        rank_zero_info(f"Model: {type(pl_module).__name__}, {count:,} parameters, {share}; {devices}.")
        rank_zero_info(f"Run: {folder}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop log entries after the checkpoint, since a resumed run repeats those steps."""
        if not trainer.is_global_zero or self.config.get("ckpt_path") is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.drop_after(trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                restart = Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START))
                get_event_writer(logger).add_event(restart)

    def _record(self, folder: Path, learns_labels: bool, leaks: Sequence[Finding]) -> None:
        """Record which runs and weights the run starts from."""
        model, data = (self.config.get(name) or {} for name in ("model", "data"))
        settings, data_settings = (dict(config.get("init_args") or {}) for config in (model, data))
        link = {
            "model": str(model.get("class_path", "")).rpartition(".")[2],
            "backbone": settings.get("backbone", settings.get("network")),
            "data": data_settings.get("source"),
            "unlabeled": data_settings.get("unlabeled_source"),
            "learns_labels": learns_labels,
        }
        if data_settings.get("labels") is not None:
            link["labels"], link["labels_sha256"] = data_settings["labels"], hash_file(Path(data_settings["labels"]))
        if leaks:
            link["leaks"] = [leak.to_json() for leak in leaks]
        sources: list[Link] = []
        for name, value in list_starts(model.get("init_args") or {}).items():
            path = (
                None if value == "default" else find_weights(Path(value), "backbone" if name == "weights" else "head")
            )
            metadata = {} if path is None else read_metadata(path)
            link[name] = value if path is None else str(path)
            if path is not None:
                link[f"{name}_sha256"] = hash_file(path)
            sources = sources or build_source_chain(str(link[name]), metadata, str(link["backbone"]))
        write_lineage(folder, link, sources)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the command `validate`."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._print_metrics(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the command `test`."""
        self._print_metrics(trainer)

    def _print_metrics(self, trainer: Trainer) -> None:
        metrics = sorted(trainer.callback_metrics.items())
        width = max([24, *(len(name) for name, _ in metrics)])
        for name, value in metrics:
            rank_zero_info(f"  {name:<{width}} {float(value):.4f}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explain exhausted memory here, where the stage of the trainer is still known."""
        attach_oom_message(exception, trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last metrics and the next commands."""
        folder = trainer.log_dir
        if not trainer.is_global_zero or folder is None:
            return
        metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("val/", "train/"))}
        log_end(trainer.loggers)
        summary = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        rank_zero_info(f"Finished at step {trainer.global_step}{': ' + summary if summary else ''}.")
        rank_zero_info(f"  results      {folder}")
        rank_zero_info(f"  test         sft-lightning test --ckpt_path {folder}")
        rank_zero_info(f"  TensorBoard  tensorboard --logdir {Path(folder).parent.parent}")
