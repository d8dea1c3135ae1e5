"""A training step without the hooks that nobody uses: on small networks they take longer than the network.

Between two batches Lightning 2.6 looks for some twenty hooks in the module, the data module, the strategy and each
callback, which takes 0.3 ms on a CPU whether or not anything is hooked in. `is_proven` names the classes for which the
lines of a plain loop are known to be the same computation: ours, Lightning's and torch's own, each exactly as written.
In any other case, and as soon as one of them changes within an epoch, Lightning's own code runs. `--fast_loop false`
switches the plain loop off.
"""

import sys
from contextlib import nullcontext
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, optim
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sft_lightning.modalities import list_modalities
from sft_lightning.paradigms.autoencoder import AutoencoderModule
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.paradigms.decoupled import DecoupledFeatureClassifier
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.paradigms.self_supervised import SelfSupervisedModule
from sft_lightning.paradigms.semi_supervised import SemiSupervisedModule
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from sft_lightning.training.callbacks.figures import TensorBoardFigures
from sft_lightning.training.callbacks.metrics_csv import MetricsCSV
from sft_lightning.training.callbacks.preemption import StopWithoutSaving
from sft_lightning.training.callbacks.progress import Progress
from sft_lightning.training.callbacks.pseudo_label_metrics import PseudoLabelHealth
from sft_lightning.training.callbacks.roll_back import RollBack
from sft_lightning.training.callbacks.run_folder import RunFolder
from sft_lightning.training.callbacks.validation_log import ValidationLogger
from sft_lightning.utils.cpu import flush_denormals, retain_freed_memory

# The exact classes for which `tests/cli/test_fast_loop.py` shows that both loops compute, call and log the same.
TRAINERS: set[type] = {Trainer}
MODULES: set[type] = {
    AutoencoderModule, DecoupledFeatureClassifier, FineTuneClassifier, SelfSupervisedModule, SemiSupervisedModule,
}  # fmt: skip
STRATEGIES: set[type] = {SingleDeviceStrategy, DDPStrategy}
PRECISIONS: set[type] = {Precision, MixedPrecision}
PROFILERS: set[type] = {PassThroughProfiler}
CALLBACKS: set[type] = {
    DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ModelCheckpoint, ModelSummary, RichModelSummary, Timer,
    TQDMProgressBar, StopWithoutSaving, TensorBoardFigures, Progress, PseudoLabelHealth, RollBack, RunCheckpoint,
    RunFolder,
}  # fmt: skip
LOGGERS: set[type] = {
    CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger, MetricsCSV, ValidationLogger,
}  # fmt: skip
OPTIMIZERS: set[type] = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad,
    optim.Adadelta, optim.ASGD, optim.Rprop,
}  # fmt: skip

_INSIDE_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_OF_THE_MODULE = (
    *_INSIDE_A_STEP, "on_train_batch_start", "backward", "optimizer_step", "optimizer_zero_grad",
    "configure_gradient_clipping", "clip_gradients", "lr_scheduler_step",
)  # fmt: skip


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at no cost: Lightning's own makes some 60 context managers in each step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return self._nothing


PROFILERS.add(NoProfiler)


class LeanEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, shorter where it may be."""

    _lean = False

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Takes the place of Lightning's loop.

        Args:
            trainer: Before its training.
        """
        old = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, min_steps=old.min_steps, max_steps=old.max_steps)

    def on_run_start(self, data_fetcher: Any) -> None:
        """Looks at the start of an epoch for what is hooked in; by then the data has been read.

        Args:
            data_fetcher: Yields the batches.
        """
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        if trainer.strategy.root_device.type == "cpu":
            retain_freed_memory()
        self._lean = is_proven(trainer)
        if not self._lean:
            return
        self._several = trainer.world_size > 1
        self._proven = self._state()
        self._parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        self._transfer = [getattr(selector.get_instance(hook), hook) for hook in hooks]
        self._validates = super()._should_check_val_epoch()

    def _state(self) -> tuple[Any, ...]:
        """Return what the plain step relies on and other code could change within an epoch; every step compares it."""
        trainer = self.trainer
        optimizer = trainer.optimizers[0]
        return (
            len(trainer.callbacks),
            [*trainer.optimizers],  # a callback may exchange one in the list itself
            vars(optimizer).get("step"),
            len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks),
            len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks),
            [len(group["params"]) for group in optimizer.param_groups],
            trainer.gradient_clip_val,
            trainer.accumulate_grad_batches,
            trainer.lightning_module.automatic_optimization,
        )

    def _should_check_val_epoch(self) -> bool:
        """Looked up once an epoch: Lightning searches the module for its validation step in each batch."""
        return self._validates if self._lean else super()._should_check_val_epoch()

    def _should_accumulate(self) -> bool:
        """Never where each batch is a step; asked for five times in each."""
        return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

    def advance(self, data_fetcher: Any) -> None:
        """One batch.

        Args:
            data_fetcher: Yields the batches.
        """
        trainer = self.trainer
        if self._lean and self._state() != self._proven:
            self._lean = False
        if not self._lean or self.restarting or trainer.fit_loop._skip_backward:
            return super().advance(data_fetcher)
        module, optimizer = trainer.lightning_module, trainer.optimizers[0]
        progress, steps = self.batch_progress, self.automatic_optimization.optim_progress.optimizer
        self.val_loop.restarting = False
        if self._several:  # whether Lightning's handler of signals was called, where none of ours takes its place
            self._broadcast_sigterm_tensor()
        raw, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        before, move, after = self._transfer
        batch = after(move(before(raw, 0), trainer.strategy.root_device, 0), 0)
        progress.increment_ready()
        log, results = trainer._logger_connector, self._results
        log.on_batch_start(batch)
        first, log._current_fx = log._first_loop_iter, None
        module._current_fx_name = "on_train_batch_start"
        for callback in trainer.callbacks:
            callback.on_train_batch_start(trainer, module, batch, index)
        progress.increment_started()

        module._current_fx_name = "training_step"
        steps.step.increment_ready()
        with flush_denormals():
            loss = cast(Tensor, trainer.strategy.training_step(batch, index))
            steps.zero_grad.increment_ready()
            steps.zero_grad.increment_started()
            for parameter in self._parameters:
                parameter.grad = None
            steps.zero_grad.increment_completed()
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
        steps.step.increment_completed()

        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        output = {"loss": loss.detach()}
        module._current_fx_name = "on_train_batch_end"
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, output, batch, index)
        module.on_train_batch_end(output, batch, index)
        module._current_fx_name = None
        if first or log._current_fx is not None:  # something was logged: all that the bar and the callbacks see is new
            log.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if results and log.should_update_logs:
            log.update_train_step_metrics()


def is_proven(trainer: Trainer) -> bool:
    """Return whether the plain step is known to compute what Lightning's own would.

    Args:
        trainer: Trainer within `fit`.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (
        all(
            type(thing) in proven and _is_as_written(thing)
            for things, proven in (
                ([trainer], TRAINERS),
                ([module], MODULES),
                ([trainer.datamodule], _list_data_modules()),  # type: ignore[attr-defined]
                ([strategy], STRATEGIES),
                ([strategy.precision_plugin], PRECISIONS),
                ([getattr(trainer, "profiler", None)], PROFILERS),
                (callbacks, CALLBACKS),
                (trainer.loggers, LOGGERS),
                ([trainer.fit_loop], {_FitLoop}),
                ([trainer.fit_loop.epoch_loop.automatic_optimization], {_AutomaticOptimization}),
            )
            for thing in things
        )
        and len(trainer.optimizers) == 1
        and _steps_plainly(trainer.optimizers[0])
        and getattr(strategy, "_model_averager", None) is None
        and getattr(strategy.precision_plugin, "scaler", None) is None
        and trainer.gradient_clip_val is None
        and trainer.accumulate_grad_batches == 1
        and not trainer._detect_anomaly
        and not trainer.barebones
        and module.automatic_optimization
        # A class may be changed, too, as notebooks do.
        and type(module).training_step is Paradigm.training_step
        and not any(_is_overridden(module, Paradigm, hook) for hook in _OF_THE_MODULE)
        and not any(_is_overridden(c, Callback, hook) for c in callbacks for hook in _INSIDE_A_STEP)
    )


def _list_data_modules() -> set[type]:
    paths = (one.data_module.split(":") for one in list_modalities() if one.is_fast)
    # A class whose module was never imported is that of no trainer.
    return {getattr(sys.modules[module], name) for module, name in paths if module in sys.modules}


def _steps_plainly(optimizer: Optimizer) -> bool:
    """Return whether one call without a closure is all of a step: hooks would see another order of calls."""
    step = vars(optimizer).get("step")  # a schedule puts its own there, which counts
    is_counted = step is not None and hasattr(step, "_wrapped_by_lr_sched")
    return (
        type(optimizer) in OPTIMIZERS
        and (step is None or (is_counted and step.__wrapped__ is type(optimizer).step))
        and _is_as_written(optimizer, but="step")
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        and not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
    )


def _is_as_written(thing: object, but: str = "") -> bool:
    """Return whether no method of an object was replaced by one that is set on it."""
    return all(
        name == but
        or not callable(own := getattr(type(thing), name, None))
        or getattr(value, "__func__", None) is own  # Lightning puts `forward` back on the instance
        for name, value in vars(thing).items()
    )


def _is_overridden(thing: object, base: type, hook: str) -> bool:
    return getattr(type(thing), hook) is not getattr(base, hook)
