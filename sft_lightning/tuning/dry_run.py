"""What the commands that train for some steps to find something out share: a Trainer that leaves nothing behind."""

import sys
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.cli.fast_loop import NoProfiler
from sft_lightning.cli.lightning_cli import DryRunCLI
from sft_lightning.paradigms.semi_supervised import SemiSupervisedModule
from sft_lightning.training.callbacks.progress import Progress
from sft_lightning.training.oom import attach_oom_message
from sft_lightning.utils.errors import InputError

# What shapes a step of training. The rest of the Trainer's settings writes files, or ends the trial before its time.
_STEP_SETTINGS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "sync_batchnorm", "deterministic",
    "benchmark", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs",
)  # fmt: skip


class OutOfMemoryHint(Callback):
    """Says what to lower where memory ran out."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the sentence in place of the error.

        Args:
            trainer: In training.
            pl_module: Unused.
            exception: Any.
        """
        attach_oom_message(exception, trainer)


class TrialCLI(DryRunCLI):
    """`fit` without checkpoints, logs and validation, on a config and not on a checkpoint.

    Attributes:
        has_progress_bar: Whether it knows how many steps there are to show.
    """

    has_progress_bar: ClassVar[bool] = True

    def before_instantiate_classes(self) -> None:
        """Refuses to go on from a checkpoint, before the data is opened."""
        checkpoint = self.config.fit.get("ckpt_path")
        if checkpoint is not None:
            raise InputError(
                f"ckpt_path is {checkpoint!r}: {self.command} looks at the start of a training, so leave it out "
                "(and give its config with --config)"
            )
        super().before_instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        kept = {name: config[name] for name in _STEP_SETTINGS if name in config}
        # A bar or nothing: the lines that a file gets count epochs, of which this is none.
        bar = self.has_progress_bar and config.get("enable_progress_bar") is not False and sys.stdout.isatty()
        return self.trainer_class(
            **kept,
            callbacks=[OutOfMemoryHint(), *([Progress()] if bar else [])],
            enable_progress_bar=bar,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            max_steps=-1,
            profiler=NoProfiler(),
        )


def skip_warmup(model: LightningModule) -> int:
    """Gives lambda its full value from the first step: no warm-up, no ramp.

    Args:
        model: About to be trained.

    Returns:
        Steps in which all is done that is done in turn: those of both kinds where supervised and unsupervised ones
        alternate, else 1.
    """
    if not isinstance(model, SemiSupervisedModule):
        return 1
    model.warmup_steps, model.ramp_steps = 0, 0
    return model.supervised_steps + model.unsupervised_steps if model.schedule == "alternating" else 1
