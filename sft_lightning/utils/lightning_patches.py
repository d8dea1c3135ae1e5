"""Everything that reaches into private parts of Lightning or torch, one function for each.

Read from lightning 2.6.6 and torch 2.14. `tests/utils/test_lightning_patches.py` holds a digest of each library
function that a patch replaces or relies on, and fails when an upgrade changes one: read the new source, adapt the patch
here, and update the digest. The fast epoch loop has a file of its own, `cli/fast_loop.py`, and the same test.
"""

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any, get_args

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.optim import Optimizer
from torch.utils.data import DataLoader


def replace_layer_sync(trainer: Trainer, layer_sync: LayerSync) -> None:
    """Replace the plugin behind `sync_batchnorm: true`, where the trainer has one.

    It makes `sync_batchnorm` work on the CPU. Lightning has no argument for the plugin: the accelerator connector
    always builds its own.

    Args:
        trainer: Trainer before it runs.
        layer_sync: Plugin to use instead.
    """
    strategy: Any = trainer.strategy
    if getattr(strategy, "_layer_sync", None) is not None:
        strategy._layer_sync = layer_sync


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from handling signals.

    It makes a preempted job of several processes stop and requeue. Lightning's handler saves on the process that got
    the signal while the others wait in a collective call. It also broadcasts in every step whether the handler ran,
    which the `Signals` of this package does without waiting.

    Args:
        trainer: Trainer about to train.
    """
    # `Trainer._run` registers the handlers after the callbacks' `setup`, so ours would be replaced.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def wrap_restoring(trainer: Trainer, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Wrap the two methods that restore a trainer from a checkpoint.

    It turns the many kinds of errors that a damaged or foreign checkpoint raises into one sentence. A callback's hook
    cannot do this: an error in restoring ends the command before any other hook.

    Args:
        trainer: Trainer before it runs.
        wrap: Decorator for both methods.
    """
    connector: Any = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, wrap(getattr(connector, name)))


def get_logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs the metrics of an evaluation.

    It puts figures at the same step as the metrics beside them; `global_step` counts optimizers and accumulation
    differently.

    Args:
        trainer: Trainer inside or after an evaluation.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step at which Lightning logs the metrics of an evaluation.

    `validate` and `test` restore no loops, so that Lightning would log their metrics at step 0, before the whole
    training.

    Args:
        trainer: Trainer of `validate` or `test`.
        step: Step to log at.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def get_event_writer(logger: TensorBoardLogger) -> Any:
    """Return the writer of TensorBoard's event file.

    `SummaryWriter` has no method for a restart event or a summary that is already built, and its `add_hparams` starts
    a second run in a folder of its own.

    Args:
        logger: Logger of a run.
    """
    return logger.experiment._get_file_writer()


def find_unused_parameters(strategy: Strategy) -> None:
    """Let DDP wait for no gradient of a parameter that took no part in a step, unless the user said otherwise.

    It makes `strategy: ddp` work as it is with schedules that train some parameters in some steps only. After the
    strategy is built, its keyword arguments for DDP are reachable only here.

    Args:
        strategy: Strategy of the trainer, before DDP wraps the module.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def mark_as_fused(optimizer: Optimizer) -> None:
    """Make an optimizer that was built without `fused` take its fused step.

    The fused step launches one kernel, and accepts `found_inf` on the device, so that no step waits for a look at its
    gradients. The attributes are those that torch's constructors set for `fused=True`.

    Args:
        optimizer: New SGD, Adam or AdamW of torch.
    """
    for settings in (optimizer.defaults, *optimizer.param_groups):
        settings["fused"] = True
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    optimizer._need_device_dtype_check_for_fused = True  # type: ignore[attr-defined]


def accepts_found_inf(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's step skips its update on the device where `optimizer.found_inf` is 1.

    Args:
        optimizer: Any optimizer.
    """
    supports = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
    return supports and all(group.get("fused") for group in optimizer.param_groups)  # a checkpoint may say otherwise


def order_int_before_float() -> None:
    """Let options of the Trainer that take an int or a float read `1` as an int: one batch, not all of them.

    `typing` keeps one object for unions that differ in their order alone, so that a library that was imported before
    Lightning (scikit-learn) decides which type jsonargparse tries first. Read from lightning 2.6.
    """
    annotations = Trainer.__init__.__annotations__
    for name, hint in annotations.items():
        members = get_args(hint)
        if int in members and float in members:
            others = [member for member in members if member not in (int, float)]
            annotations[name] = reduce(or_, others, int | float)  # `|` keeps its order


def reset_train_loader(trainer: Trainer) -> None:
    """Let Lightning make the training loaders again before its next epoch, because their batch size was changed.

    Lightning has `reload_dataloaders_every_n_epochs`, which reloads at fixed epochs alone.

    Args:
        trainer: Trainer of the data module.
    """
    trainer.fit_loop._combined_loader = None


def shut_down_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes of a loader that keeps them between its passes.

    torch ends them only when the garbage collector removes the iterator, which destroys their queues first and then
    waits 5 s for each worker.

    Args:
        loader: Loader with `persistent_workers`, or without workers.
    """
    if loader._iterator is not None:
        if loader.num_workers:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined] # of the kind with workers
        loader._iterator = None


def get_launch_rank() -> int | None:
    """Return the rank of this process as its launcher set it; None before ranks are known."""
    rank: int | None = _get_rank()
    return rank
