"""LightningCLI with our paradigms, a folder for each run, and errors of one sentence."""

import re
import sys
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed

# Imported so that a config can name them without their module.
from sft_lightning import (  # noqa: F401
    AnomalyDataModule,
    AnomalyDetector,
    AudioDataModule,
    AutoencoderModule,
    DecoupledFeatureClassifier,
    DetectionDataModule,
    DistillModule,
    FineTuneClassifier,
    FineTuneDetector,
    FrozenFeatureClassifier,
    ImageDataModule,
    SegmentationDataModule,
    SelfSupervisedModule,
    SemiSupervisedDetector,
    SemiSupervisedModule,
    StudentTeacherDetector,
    TextDataModule,
    WarmupCosine,
)
from sft_lightning.cli.argv import add_run_config, normalize_argv
from sft_lightning.cli.error_messages import explain_missing_part
from sft_lightning.cli.fast_loop import LeanEpochLoop, NoProfiler
from sft_lightning.cli.logging import silence_third_party
from sft_lightning.cli.parser import Parser
from sft_lightning.cli.predict_config import set_checkpoint_classes, set_checkpoint_shape
from sft_lightning.cli.prediction_writers import make_writer
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.cli.registry import LINKED, accepts_null
from sft_lightning.cli.resumed_settings import restore_settings
from sft_lightning.cli.run_config import explain_missing_data, set_splits
from sft_lightning.data.class_names import format_class_names
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.build import use_files_of
from sft_lightning.paradigms.without_steps import WithoutSteps
from sft_lightning.runs.checkpoints import check_checkpoint, find_checkpoint, find_newest_checkpoint, read_checkpoint
from sft_lightning.runs.lock import RunLock, is_training
from sft_lightning.runs.paths import LOGS, check_run_name, get_run_folder, list_versions
from sft_lightning.training.callbacks import checkpoint_validation
from sft_lightning.training.callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint
from sft_lightning.training.callbacks.external_loggers import resume_external_runs
from sft_lightning.training.callbacks.figures import TensorBoardFigures
from sft_lightning.training.callbacks.metrics_csv import MetricsCSV
from sft_lightning.training.callbacks.preemption import StopWithoutSaving
from sft_lightning.training.callbacks.progress import Progress
from sft_lightning.training.callbacks.pseudo_label_metrics import PseudoLabelHealth
from sft_lightning.training.callbacks.roll_back import RollBack
from sft_lightning.training.callbacks.run_folder import RunFolder
from sft_lightning.training.run_logger import build_run_logger
from sft_lightning.training.sync_batchnorm import SyncBatchNormsOnCPU
from sft_lightning.utils.cpu import prepare_cpu
from sft_lightning.utils.errors import InputError, did_you_mean, find_input_error
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.lightning_patches import get_launch_rank, order_int_before_float


class FitParser(Parser, LightningArgumentParser):
    """LightningCLI's parser, which writes a config without checking it again (which takes 0.1 s)."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return a config as text, with the arguments of jsonargparse's method."""
        text: str = super().dump(*args, **{"skip_validation": True, **kwargs})
        return text

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write a config, with the arguments of jsonargparse's method."""
        super().save(*args, **{"skip_validation": True, **kwargs})


class SFTCLI(LightningCLI):
    """Lightning's command line with our defaults: `fit`, `validate`, `test` and `predict`.

    Attributes:
        command: Name of the command whose help is shown, if it is not one of the four.
        trains: Whether `fit` trains in a folder of its own.
    """

    command: str | None = None
    trains: bool = True
    _recorded_spec: InputSpec | None = None  # inputs that the checkpoint records

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Run a command, with the arguments of LightningCLI, of which `args` is required."""
        self._command: str = kwargs["args"][0]
        self._options: list[str] = list(kwargs["args"][1:])
        self._lock = RunLock()
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:
            config = getattr(self, "config", {}).get(self._command) or {}
            if (message := explain_missing_data(config, find_input_error(error))) is None:
                raise
            raise InputError(message) from error
        finally:
            self._lock.release()

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # of the class in Lightning, which makes all
        """Return the given subcommand alone, as each parser takes 0.1 s."""
        return {self._command: super().subcommands()[self._command]}

    def setup_parser(self, *args: Any) -> None:
        """Name the parsers as the user called them."""
        super().setup_parser(*args)
        for name, parser in self._subcommand_parsers.items():
            parser.prog = f"sft-lightning {self.command or name}"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the name of the run, and link what a model needs to know of the data."""
        parser.add_argument("--run_name", type=str, default="run", help=f"Runs are kept in {LOGS}/RUN_NAME/version_N.")
        parser.add_argument(
            "--fast_loop", type=bool, default=True, help="Skip unused hooks where results are known to be the same."
        )
        parser.add_argument(
            "--roll_back",
            type=bool,
            default=True,
            help="Return to the network before semi-supervised training if validation shows that it did harm.",
        )
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command, and replace a run folder or `last` with the checkpoint that it means."""
        command = self._command
        if any(option.partition("=")[0] == "--print_config" for option in self._options):
            parser.parse_args([command, *self._options])  # prints and exits, which the parser of the command does not
        # By the parser of the command alone: the one above it would go through every setting a second time.
        self.config = Namespace(subcommand=command, **{command: self._parser(command).parse_args(self._options)})
        config = self.config[command]
        check_run_name("run_name", config.run_name)
        if config.get("weights_only") is False:
            raise InputError("weights_only is False, with which a checkpoint could run code: leave it out")
        if config.get("ckpt_path") is not None:
            config.ckpt_path = self._checkpoint(config.ckpt_path, Path(LOGS) / config.run_name)
        elif command != "fit":
            raise InputError(
                f"{command} needs a trained model: add --ckpt_path with a run's folder, a checkpoint, or `last`"
            )

    def _checkpoint(self, name: str, runs: Path) -> str | None:
        """Return the checkpoint; None if `fit` resumes a run that stopped before its first one, and so starts anew."""
        newest = list_versions(runs)[-1:]
        if name == "last" and self.config.subcommand == "fit" and newest and find_newest_checkpoint(newest[0]) is None:
            if is_training(newest[0]):
                raise InputError(
                    f"run {str(newest[0])!r} is being trained and has no checkpoint yet: wait, or leave out ckpt_path "
                    "to start another run"
                )
            rank_zero_info(f"Run {newest[0]} was stopped before its first checkpoint: starting anew.")
            return None
        return str(find_checkpoint(name, runs))

    def _parse_ckpt_path(self) -> None:
        """Keep the config. Lightning would replace it with the checkpoint's, even the model's class (pl#21116)."""

    def before_instantiate_classes(self) -> None:
        """Apply what the checkpoint determines: classes, input size and the settings of the optimizer."""
        config = self.config[self.config.subcommand]
        if lacking := [part for part in ("model", "data") if config.get(part) is None]:
            raise InputError(explain_missing_part(*lacking))
        for section in ("model", "data"):
            _refuse_null(section, config[section])
        settings = config.model.get("init_args") or {}
        _choose_encoding(config.data, settings.get("backbone") or settings.get("network"))
        # The weights that a run started from need not be read again, or exist: the checkpoint holds their successors.
        for name in ("weights", "head_weights") if config.get("ckpt_path") is not None else ():
            if name in settings:
                settings[name] = "none"
        checkpoint = config.get("ckpt_path")
        if checkpoint is not None:
            self._tensors, metadata = read_checkpoint(Path(checkpoint))
            self._classes = set_checkpoint_classes(config, metadata, Path(checkpoint))
            if self.subcommand == "predict":
                set_checkpoint_shape(config.data, metadata, Path(checkpoint))
        run = None if checkpoint is None else get_run_folder(Path(checkpoint))
        recorded = None if checkpoint is None else metadata.get("hyper_parameters")
        if isinstance(recorded, dict) and (spec := InputSpec.from_settings(recorded)) is not None:
            use_files_of(Path(checkpoint), spec)
            self._recorded_spec = spec
        if run is not None and self.subcommand == "fit":
            restore_settings(config.model, run)
        elif run is not None and is_training(run):
            # Allowed: checkpoints are complete files, and looking at a run on its way is what they are for.
            rank_zero_info(
                f"Run {run} is still being trained: {self.subcommand} takes {Path(checkpoint).name} of step "
                f"{metadata.get('global_step', 'unknown')}, which is not the end."
            )
        resume_external_runs(config.trainer.get("logger"), run)

    def instantiate_classes(self) -> None:
        """Build the objects, and name the extra that a logger needs if it is not installed."""
        try:
            super().instantiate_classes()
        except (ModuleNotFoundError, ValueError) as error:  # as jsonargparse wraps it
            if missing := re.search(r"Requirement '(mlflow|wandb)\b", str(error)):
                name = missing[1]
                raise InputError(f"trainer.logger needs {name}: pip install 'sft-lightning[{name}]'") from error
            if reason := re.search(r"loggers\.logger\.Logger'.*?\n +- (.*?)\n +- ", str(error), re.DOTALL):
                raise InputError(f"trainer.logger cannot be made: {reason[1]}") from error
            raise

    def after_instantiate_classes(self) -> None:
        """Refuse what would fail later inside of the Trainer."""
        checkpoint = self._get(self.config_init, "ckpt_path")
        if isinstance(self.datamodule, FewLabelDataModule):
            config = self.config[self.subcommand]
            set_splits(self.datamodule, config, None if checkpoint is None else get_run_folder(Path(checkpoint)))
            if self._recorded_spec is not None:
                self.datamodule.use_recorded(self._recorded_spec)
        if self.subcommand == "fit" and isinstance(self.model, WithoutSteps):
            self.model.check_processes(self.trainer.world_size)  # before any is started
        if checkpoint is None:
            return
        check_checkpoint(Path(checkpoint), self._tensors, self.model)
        del self._tensors
        class_names = getattr(self.model, "class_names", None)
        if self._classes is None and class_names:
            rank_zero_info(
                f"Checkpoint {checkpoint} does not name its classes: they are taken by position, in the order "
                f"{format_class_names(class_names)}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the folder of a new version or of the checkpoint that the run resumes from."""
        trainer = self._get(self.config_init, "trainer")
        checkpoint, name = (self._get(self.config_init, key) for key in ("ckpt_path", "run_name"))
        is_trained_here = self.trains and self.subcommand == "fit" and not trainer.fast_dev_run
        lock = self._lock if is_trained_here and not get_launch_rank() else None
        if trainer.logger is False and is_trained_here:
            self._take_folder(trainer.default_root_dir, checkpoint, name, lock, kwargs)
        if trainer.logger is not False:
            loggers = [] if trainer.logger in (None, True) else trainer.logger
            apart = self.subcommand == "validate"
            logger = build_run_logger(checkpoint, name, apart, lock)
            # Ours comes first: Lightning asks the first logger for the folder of the run.
            others = list(loggers) if isinstance(loggers, Iterable) else [loggers]
            kwargs["logger"] = [logger, MetricsCSV(logger.log_dir, apart), *others]
            # Every later run would load a checkpoint that SLURM's signal leaves in the root directory.
            kwargs["default_root_dir"] = trainer.default_root_dir or logger.log_dir
        kwargs.setdefault("profiler", trainer.profiler or NoProfiler())
        try:
            instance = super().instantiate_trainer(**kwargs)
        except ValueError as error:
            if match := re.search(r"invalid (accelerator|strategy) name: `\w+='(\w+)'`", str(error)):
                registry = {"accelerator": AcceleratorRegistry, "strategy": StrategyRegistry}[match[1]]
                hint = did_you_mean(match[2], [*registry, "gpu"] if match[1] == "accelerator" else list(registry))
                examples = ", ".join(sorted(registry, key=len)[:4])
                raise InputError(f"trainer.{match[1]} is {match[2]!r}{hint}: give auto, {examples}, ...") from error
            raise InputError(f"trainer: {error}") from error  # Lightning's sentence
        AtomicCheckpointIO.install(instance)
        checkpoint_validation.install(instance)
        if self._get(self.config_init, "fast_loop"):
            LeanEpochLoop.install(instance)
        SyncBatchNormsOnCPU.install(instance)
        return instance

    def _take_folder(
        self, root: str | None, checkpoint: str | None, name: str, lock: RunLock | None, kwargs: dict[str, Any]
    ) -> None:
        """Give trainings without a logger folders of their own, too."""
        if root is None:
            folder = build_run_logger(checkpoint, name, lock=lock).log_dir
            kwargs["default_root_dir"] = folder
            if isinstance(self.datamodule, FewLabelDataModule):
                self.datamodule.unlogged_folder = Path(folder)
        elif checkpoint is None and any(Path(root, "checkpoints").glob("*.ckpt")):
            raise InputError(
                f"trainer.default_root_dir {root!r} holds the checkpoints of another run, which would be overwritten: "
                "give another folder, or leave it out"
            )

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Add the callbacks that the command needs and no others, as each one costs time in every step."""
        if isinstance(self.model, WithoutSteps) and config.get("max_epochs") is None:
            config["max_epochs"] = 1  # all that it takes, without Lightning's advice to set it
        saves = config.get("enable_checkpointing") is not False
        defaults: list[Callback] = [
            RunCheckpoint() if saves else StopWithoutSaving(),
            make_writer(self.model) if self.subcommand == "predict" else TensorBoardFigures(),
        ]
        if isinstance(self.model, SemiSupervisedModule):
            defaults.append(PseudoLabelHealth())
            if self.subcommand == "fit" and self._get(self.config_init, "roll_back"):
                defaults.append(RollBack())
        if config.get("enable_progress_bar") is not False:
            defaults.append(Progress())
        return super()._instantiate_trainer(config, [*callbacks, *defaults])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        # Predictions go to a file, not to memory; `RunFolder` reports the metrics.
        defaults = {"predict": {"return_predictions": False}, "fit": {}}.get(subcommand, {"verbose": False})
        # With Lightning's default, an environment variable would decide whether a checkpoint may run code.
        return {**kwargs, **defaults, "weights_only": True}


def _choose_encoding(data: Any, backbone: object) -> None:
    """Let data take the inputs of a published encoder, its tokens or waveforms, unless the user named others."""
    settings = data.get("init_args") or {}
    if isinstance(backbone, str) and backbone.startswith("hf/"):
        for name, value in (("tokenizer", backbone.partition(":")[0]), ("encoding", "waveform")):
            if name in settings:
                settings[name] = settings[name] or value


def _refuse_null(section: str, config: Any) -> None:
    """Refuse null, which the parser accepts for every setting of a model or data module."""
    for name, value in (config.get("init_args") or {}).items():
        if value is None and name not in LINKED and not accepts_null(config.class_path, name):
            raise InputError(f"{section}.{name} is null, which is not allowed: give a value, or leave it out")


class DryRunCLI(SFTCLI):
    """A command line that builds model, data and trainer, and runs nothing."""

    trains = False

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def prepare_process() -> None:
    """Set up the process for a command; called inside of `preserve_process`."""
    silence_third_party()
    prepare_cpu()
    order_int_before_float()
    if "" not in sys.path:  # lets a config name a class in the user's own file; last, to hide nothing
        sys.path.append("")


def run(args: Sequence[str], kind: type[SFTCLI] = SFTCLI) -> SFTCLI:
    """Run one command and return its objects as `trainer`, `model` and `datamodule`.

    Afterward, the settings of the process are as before. To go on with the trainer under the settings of the command
    (such as `trainer.deterministic`), call this inside of `preserve_process`.

    Args:
        args: Arguments of the command line, the command first.
        kind: Class that parses and runs them.

    Raises:
        InputError: The input is wrong.
    """
    with preserve_process():
        prepare_process()
        # In its own context: jsonargparse leaves the parser there, and with it model, data and trainer.
        return copy_context().run(
            kind,
            LightningModule,
            subclass_mode_model=True,
            datamodule_class=None,
            save_config_callback=RunFolder,
            save_config_kwargs={"argv": list(args)},
            parser_class=FitParser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "enable_autolog_hparams": False,  # `RunFolder` logs all settings of the config
                "enable_model_summary": False,  # one line says what a user needs of it
                "num_sanity_val_steps": 0,  # bad input is found before the first step by other means
                "use_distributed_sampler": False,  # our loaders know rank and world size
            },
            args=add_run_config(normalize_argv(args)),
        )


def destroy_process_group() -> None:
    """End the process group of DDP, whose threads sometimes abort the process at the interpreter's exit."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
