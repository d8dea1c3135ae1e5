"""A training step without the hooks that nobody uses: on small networks they take longer than the network.

Between two batches Lightning 2.6 looks for some twenty hooks in the module, the data module, the strategy and each
callback, which takes 0.3 ms on a CPU whether or not anything is hooked in. Where nothing is, on one device or several
with DDP, in full precision or mixed bfloat16, without clipping or accumulation, the lines of a plain loop are the same
computation. In any other case Lightning's own code runs.
"""

import inspect
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from sft_lightning.cpu import keep_memory
from sft_lightning.lean_adam import LeanAdam, suits
from sft_lightning.paradigms.base import Paradigm

_INSIDE_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_OF_THE_MODULE = (
    *_INSIDE_A_STEP, "on_train_batch_start", "backward", "optimizer_step", "optimizer_zero_grad",
    "configure_gradient_clipping", "clip_gradients",
)  # fmt: skip


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
            keep_memory()
        self._lean = nothing_hooked(trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        if not self._lean:
            return
        self._several = trainer.world_size > 1
        optimizer = trainer.optimizers[0]
        self._update = LeanAdam(optimizer).step if suits(optimizer) else optimizer.step
        self._parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        callbacks: list[Callback] = trainer.callbacks
        self._on_start, self._on_end = (
            [getattr(callback, hook) for callback in callbacks if _overridden(callback, Callback, hook)]
            for hook in ("on_train_batch_start", "on_train_batch_end")
        )
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        self._transfer = [getattr(selector.get_instance(hook), hook) for hook in hooks]
        self._validates = super()._should_check_val_epoch()

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
        if not self._lean or self.restarting or trainer.fit_loop._skip_backward or trainer.accumulate_grad_batches != 1:
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
        for hook in self._on_start:
            hook(trainer, module, batch, index)
        progress.increment_started()

        module._current_fx_name = "training_step"
        steps.step.increment_ready()
        loss = cast(Tensor, trainer.strategy.training_step(batch, index))
        steps.zero_grad.increment_ready()
        steps.zero_grad.increment_started()
        for parameter in self._parameters:
            parameter.grad = None
        steps.zero_grad.increment_completed()
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        self._update()
        steps.step.increment_completed()

        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        output = {"loss": loss.detach()}
        module._current_fx_name = "on_train_batch_end"
        for hook in self._on_end:
            hook(trainer, module, output, batch, index)
        module.on_train_batch_end(output, batch, index)
        module._current_fx_name = None
        if first or log._current_fx is not None:  # something was logged: all that the bar and the callbacks see is new
            log.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if results and log.should_update_logs:
            log.update_train_step_metrics()


def nothing_hooked(trainer: Trainer) -> bool:
    """Whether the plain step computes what Lightning's would.

    Args:
        trainer: In training.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    return (
        type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
        and _never_scales(strategy.precision_plugin)
        and trainer.gradient_clip_val is None
        and not trainer._detect_anomaly
        and getattr(type(module), "training_step", None) is Paradigm.training_step
        and not any(_overridden(module, Paradigm, hook) for hook in _OF_THE_MODULE)
        and not any(_overridden(c, Callback, hook) for c in trainer.callbacks for hook in _INSIDE_A_STEP)  # type: ignore[attr-defined]
        # LBFGS computes the loss several times in a step.
        and all(_needs_no_closure(o) for o in trainer.optimizers)
    )


def _needs_no_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is None


def _never_scales(plugin: Precision) -> bool:
    """Full precision, or half without a factor on the loss."""
    return type(plugin) is Precision or (type(plugin) is MixedPrecision and plugin.scaler is None)


def _overridden(thing: object, base: type, hook: str) -> bool:
    return getattr(type(thing), hook) is not getattr(base, hook) or hook in vars(thing)
