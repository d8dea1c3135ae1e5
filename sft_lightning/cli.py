"""LightningCLI with our paradigms, a folder for each run, and errors that are sentences."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler

# Imported so that a config can name them without their module.
from sft_lightning import (  # noqa: F401
    AutoencoderModule,
    FineTuneClassifier,
    ImageDataModule,
    WarmupCosine,
)
from sft_lightning.callbacks.figures import Figures
from sft_lightning.callbacks.predictions import PredictionWriter
from sft_lightning.callbacks.run_folder import RunCheckpoint, RunFolder
from sft_lightning.console import quiet
from sft_lightning.errors import InputError

LOGS = "lightning_logs"


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at no cost: Lightning's own makes some 60 context managers in each step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return self._nothing


class SFTCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` over any paradigm and data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, and takes from the data what a model needs to know of it."""
        parser.add_argument("--run_name", type=str, default="run", help=f"Runs are kept in {LOGS}/RUN_NAME/version_N.")
        for name in ("num_classes", "class_names", "image_shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Finds the checkpoint that a run folder or `last` means."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") is not None:
            config.ckpt_path = str(find_checkpoint(config.ckpt_path, Path(LOGS) / config.run_name))
            if config.get("model") and "weights" in config.model.get("init_args", {}):
                config.model.init_args.weights = "none"  # the checkpoint holds them
        elif self.config.subcommand != "fit":
            raise InputError(
                f"{self.config.subcommand} needs a trained model: add --ckpt_path with a run's folder, a checkpoint, "
                "or `last`"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Gives the run its folder: a new version, or that of the checkpoint it goes on from."""
        trainer = self._get(self.config_init, "trainer")
        if trainer.logger in (None, True):
            checkpoint = self._get(self.config_init, "ckpt_path")
            kwargs["logger"] = logger = _logger(checkpoint, self._get(self.config_init, "run_name"))
            # A checkpoint that SLURM's signal leaves in the root directory would be taken by every later run.
            kwargs["default_root_dir"] = trainer.default_root_dir or logger.log_dir
        kwargs.setdefault("profiler", trainer.profiler or NoProfiler())
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Adds the callbacks that the command needs, and no other: each one costs every step."""
        own: list[Callback] = [RunCheckpoint(), PredictionWriter() if self.subcommand == "predict" else Figures()]
        if config.get("enable_progress_bar") is not False:
            own.append(TQDMProgressBar(refresh_rate=50))  # a refresh reads metrics from the device
        return super()._instantiate_trainer(config, [*callbacks, *own])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "return_predictions": False} if subcommand == "predict" else kwargs


def _logger(checkpoint: str | None, name: str) -> TensorBoardLogger:
    folder = run_folder(Path(checkpoint)) if checkpoint else None
    if folder is not None:
        return TensorBoardLogger(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
    # The processes that DDP starts inherit the version, which they would count differently.
    logger = TensorBoardLogger(LOGS, name, os.environ.get("SFT_VERSION"), default_hp_metric=False)
    os.environ["SFT_VERSION"] = Path(logger.log_dir).name
    return logger


def run_folder(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in, or None.

    Args:
        checkpoint: RUN/checkpoints/NAME.ckpt.
    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def find_checkpoint(name: str, runs: Path) -> Path:
    """The checkpoint that the user means.

    Args:
        name: A file, a run's folder (its last checkpoint), or `last` (the newest run's last checkpoint).
        runs: Where the runs of this name are.

    Raises:
        InputError: There is none.
    """
    if name == "last":
        found = sorted(runs.glob("version_*/checkpoints/last.ckpt"), key=lambda p: int(p.parts[-3].split("_")[1]))
        if not found:
            raise InputError(f"ckpt_path is 'last', but no run in {str(runs)!r} has a checkpoint yet: start without it")
        return found[-1]
    path = Path(name)
    if (path / "checkpoints" / "last.ckpt").is_file():
        return path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise InputError(f"ckpt_path {name!r} is no checkpoint and no run with checkpoints/last.ckpt: check the path")
    return path


def _with_config(args: list[str]) -> list[str]:
    """Adds the config of the run that --ckpt_path names where none is given."""
    if any(word.split("=")[0] in ("--config", "-c", "--help", "-h") for word in args):
        return args
    joined = [w.partition("=")[2] for w in args if w.startswith("--ckpt_path=")]
    given = joined or [b for a, b in pairwise(args) if a == "--ckpt_path"]
    for folder in [Path(given[-1]), run_folder(Path(given[-1]))] if given else []:
        if folder is not None and (folder / "fit.yaml").is_file():
            return [args[0], "--config", str(folder / "fit.yaml"), *args[1:]]
    return args


def run(args: Sequence[str]) -> SFTCLI:
    """Runs one command and gives back what took part: `trainer`, `model`, `datamodule`.

    Args:
        args: Words of the command line, the command first.

    Raises:
        InputError: The input is wrong.
        SystemExit: The words cannot be parsed (code 2).
    """
    quiet()
    os.environ.pop("SFT_VERSION", None) if "LOCAL_RANK" not in os.environ else None
    return SFTCLI(
        LightningModule,
        subclass_mode_model=True,
        datamodule_class=None,
        save_config_callback=RunFolder,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={
            "enable_model_summary": False,  # one line says what a user needs of it
            "num_sanity_val_steps": 0,  # bad input is found before the first step by other means
            "use_distributed_sampler": False,  # our loaders know rank and world size
        },
        args=list(_with_config(list(args))),
    )
