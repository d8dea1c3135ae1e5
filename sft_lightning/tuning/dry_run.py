"""Base of the commands that train for some steps to measure something: a Trainer that leaves no files behind."""

import sys
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.cli.fast_loop import NoProfiler
from sft_lightning.cli.lightning_cli import DryRunCLI
from sft_lightning.paradigms.frozen_features import FrozenFeatureClassifier
from sft_lightning.paradigms.semi_supervised import SemiSupervisedModule
from sft_lightning.training.callbacks.progress import Progress
from sft_lightning.training.oom import attach_oom_message
from sft_lightning.utils.errors import InputError

# Settings that shape a training step. The Trainer's others write files, or would end the trial early.
_STEP_SETTINGS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "sync_batchnorm", "deterministic",
    "benchmark", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs",
)  # fmt: skip


class OutOfMemoryHint(Callback):
    """Callback that says what to lower when memory runs out."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Replace an out-of-memory error by one with a remedy.

        Args:
            trainer: Trainer of the failed step.
            pl_module: Unused.
            exception: Exception that was raised.
        """
        attach_oom_message(exception, trainer)


class TrialCLI(DryRunCLI):
    """`fit` without checkpoints, logs and validation, from a config and not from a checkpoint.

    Attributes:
        has_progress_bar: Whether the number of steps is known, so that a bar can show them.
    """

    has_progress_bar: ClassVar[bool] = True

    def before_instantiate_classes(self) -> None:
        """Refuse to resume from a checkpoint, before the data is opened."""
        checkpoint = self.config.fit.get("ckpt_path")
        if checkpoint is not None:
            raise InputError(
                f"ckpt_path is {checkpoint!r}: {self.command} looks at the start of a training, so leave it out "
                "(and give its config with --config)"
            )
        super().before_instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Refuse a model without training steps."""
        super().after_instantiate_classes()
        if isinstance(self.model, FrozenFeatureClassifier):
            raise InputError(
                f"{self.command} measures training steps, and {type(self.model).__name__} takes none: train it with "
                "`fit`, which takes seconds"
            )

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        kept = {name: config[name] for name in _STEP_SETTINGS if name in config}
        # A bar or nothing: progress lines for log files count epochs, and a trial has none.
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
    """Give lambda its full value from the first step: no warm-up, no ramp.

    Args:
        model: Model about to be trained.

    Returns:
        Number of steps in one cycle: a turn of supervised and unsupervised steps where these alternate, else 1.
    """
    if not isinstance(model, SemiSupervisedModule):
        return 1
    model.skip_warmup()
    return model.supervised_steps + model.unsupervised_steps if model.schedule == "alternating" else 1
