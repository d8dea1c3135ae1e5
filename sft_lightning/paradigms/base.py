"""Base of all paradigms: optimizer groups, schedules and logging. Hooks only; a paradigm computes a `StepResult`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from sft_lightning.data.contract import BatchRequest, few_label_data
from sft_lightning.data.loaders import Schedule
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.networks.encoder import Encoder
from sft_lightning.training.epochs import is_last_epoch
from sft_lightning.training.figures import Figure
from sft_lightning.training.nonfinite import NonfiniteGuard, OnNonfinite
from sft_lightning.training.optimizers import Group, check_schedules, configure_optimizer
from sft_lightning.utils.cpu import flush_denormals
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.renamed import refuse_renamed

COMPILED_FORMS = 64  # most compiled variants in a process: one per network, shape, mode and precision


class StepResult(NamedTuple):
    """Result of a training step.

    Attributes:
        loss: Scalar with gradient.
        logs: Scalars without gradient, averaged over the steps between two entries of the log.
        control: Loss of a network of its own parameters that learns beside; no part of `train/loss`.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]
    control: Tensor | None = None


class Paradigm(LightningModule, ABC):
    """Base of all paradigms.

    Attributes:
        batch_parts: The parts of a training batch that the data module loads for this paradigm.
        unlabeled_views: The views of an unlabeled example that it makes: `weak`, `weak_2`, `strong`, `strong_2`.
        balanced_from_epoch: Epoch from which labeled batches hold all classes equally often; None for never.
        monitor: The validation metric that chooses the best checkpoint, and `min` or `max`; None for none.
        constant_buffers: Names of the module's own buffers that no training step changes.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled",)
    unlabeled_views: tuple[str, ...] = ("weak",)
    balanced_from_epoch: int | None = None
    monitor: ClassVar[tuple[str, str] | None] = ("val/loss", "min")
    constant_buffers: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse former names of hooks."""
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, batch_schedule="make_schedule")

    def __init__(
        self,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
        regularizer: Regularizer | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
    ) -> None:
        """Store the factories of optimizer and schedule, the regularizer, and the policy for non-finite steps.

        Args:
            optimizer: Function that makes an optimizer from parameter groups; needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or None for a constant rate.
            regularizer: lambda R(theta), one of `sft_lightning.losses.regularizers` or a class of your own; None for
                none. `regularize` builds it.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`). In either case it changes no parameter.
            nonfinite_limit: Number of steps that may be left out; one more stops the training.

        Raises:
            InputError: A setting has the wrong type.
        """
        super().__init__()
        for name, given in (("optimizer", optimizer), ("lr_scheduler", lr_scheduler)):
            if given is not None and not callable(given):
                raise InputError(f"{name} is {given!r:.60}: give a function that makes it (in YAML, a class_path)")
        if not isinstance(regularizer, Regularizer | None):
            raise InputError(
                f"regularizer is {regularizer!r:.60}: give an object such as L2(0.1) (in YAML, a class_path)"
            )
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.regularizer = regularizer
        self._guard = NonfiniteGuard(on_nonfinite, nonfinite_limit)
        self._sums: dict[str, Tensor] = {}
        self._summed: dict[str, int] = {}
        self._logged_step = -1
        self._ignored_by_ddp: list[str] = []  # names that users add

    def __setattr__(self, name: str, value: Any) -> None:
        """Set plain values without torch's search for parameters, because Lightning sets some twenty in each step."""
        if type(value) in (str, int, type(None)) and name not in vars(self).get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Names of constant buffers, which DDP would otherwise broadcast to all processes in each step."""
        constants = [
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.named_modules()
            for name in getattr(module, "constant_buffers", ())
        ]
        return constants + self._ignored_by_ddp

    @_ddp_params_and_buffers_to_ignore.setter
    def _ddp_params_and_buffers_to_ignore(self, names: list[str]) -> None:
        self._ignored_by_ddp = list(names)

    def batch_request(self) -> BatchRequest:
        """Return what the data module should put into the training batches."""
        return BatchRequest(self.batch_parts, self.unlabeled_views, self.balanced_from_epoch)

    def make_schedule(self, epoch_steps: int) -> Schedule | None:
        """Return which parts each training batch holds; None where every batch holds all.

        Args:
            epoch_steps: Number of training batches of an epoch.
        """
        return None

    @abstractmethod
    def step(self, batch: Any) -> StepResult:
        """Compute the loss of one training batch.

        Args:
            batch: Mapping with the parts that `batch_parts` names.
        """

    def regularize(self, backbone: Encoder, compile: bool | str) -> None:
        """Build the regularizer on the backbone right after its weights were loaded.

        Args:
            backbone: Network that maps examples to features.
            compile: Whether it will be compiled.

        Raises:
            InputError: The regularizer needs activations of a compiled backbone.
        """
        if self.regularizer is not None:
            name = type(self.regularizer).__name__
            if compile and self.regularizer.needs_activations:
                raise InputError(f"compile is {compile}, but {name} looks into the backbone: set it to false")
            self.regularizer.build(backbone)

    def watched(self) -> AbstractContextManager[None]:
        """Return a context in which a regularizer that needs activations captures them."""
        return nullcontext() if self.regularizer is None else self.regularizer.capture()

    def groups(self) -> list[Group]:
        """Return all parameters that are ever trained, those released later included."""
        return [Group("all", [p for p in self.parameters() if p.requires_grad], 1.0)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint independent of the files that weights came from; refuse to save after bad steps."""
        self._guard.flush(self)
        settings = checkpoint.get("hyper_parameters", {})
        settings.update({name: "none" for name in ("weights", "head_weights") if name in settings})

    def on_train_start(self) -> None:
        """Reset the averages, also for a resumed training or a second one of the same module."""
        check_schedules(self.trainer)  # after callbacks, which may have replaced them
        self._sums, self._summed, self._logged_step = {}, {}, self.trainer.global_step
        self._guard.reset()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss; its parts are summed on the device and read only when the log is due.

        Raises:
            InputError: Batch normalization gets a single value per channel.
        """
        self._guard.keep_buffers(self)
        try:
            result = self.step(batch)
        except (ValueError, RuntimeError) as error:  # RuntimeError where the network is compiled
            if "Expected more than 1 value per channel" not in str(error):
                raise
            data = few_label_data(self.trainer)
            remedies = ["set batch_size to 2 or more", "use 2 or more labels for each process"]
            remedies += [f"set a larger {name}" for name in ([] if data is None else data.size_settings)]
            raise InputError(
                "a training batch has one example, of which the network's batch normalization gets one value per "
                f"channel, which has no variance: {', '.join(remedies[:-1])}, or {remedies[-1]}"
            ) from error
        if self.regularizer is not None:
            penalty: Tensor = self.regularizer(self)
            logs = result.logs or {"task": result.loss}
            result = result._replace(loss=result.loss + penalty, logs={**logs, "regularizer": penalty})
        self._guard.record(batch, {"loss": result.loss, **result.logs})
        for name, value in (("loss", result.loss), *result.logs.items()):
            value = value.detach()
            if name in self._sums:
                self._sums[name] = self._sums[name] + value
                self._summed[name] += 1
            else:
                # A copy: a strategy may log a buffer that the next step changes.
                self._sums[name], self._summed[name] = value.clone(), 1
        loss = result.loss if result.control is None else result.loss + result.control
        if self.trainer.world_size > 1:  # NaN gradients tell all processes that one has a bad loss
            return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take one step, forward and backward pass included, with denormals flushed: dead units would slow it down.

        Args:
            args: Arguments of Lightning's `optimizer_step`.
            kwargs: Keyword arguments of Lightning's `optimizer_step`.
        """
        with flush_denormals():
            super().optimizer_step(*args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep a step with non-finite gradients from changing parameters.

        Args:
            optimizer: Optimizer that is about to step.

        Raises:
            InputError: The policy for non-finite steps stops the training.
        """
        self._guard.check_step(self, optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the averages of the last steps when the log is due, so that other steps need not wait for the device."""
        step = self.trainer.global_step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_step:
            self._guard.flush(self)
            self._log_training(step)

    def on_train_epoch_end(self) -> None:
        """Log the remaining averages at the end of training, however short it was."""
        self._guard.flush(self)
        if self._summed and self.is_last_epoch:
            self._log_training(self.trainer.global_step)

    @property
    def is_last_epoch(self) -> bool:
        """Whether training ends with the epoch that is about to end."""
        return is_last_epoch(self.trainer)

    def _log_training(self, step: int) -> None:
        means = {name: value / self._summed[name] for name, value in self._sums.items()}
        means.update(self.derived(means))
        self.log("train/loss", means.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        self._sums, self._summed, self._logged_step = {}, {}, step

    def derived(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return further scalars that are computed from the averages when the log is due.

        Args:
            means: Mean of each logged scalar since the last log entry.
        """
        return {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make one optimizer over all groups, each with its share of the learning rate.

        Raises:
            InputError: No optimizer was given.
        """
        if self._optimizer is None:
            raise InputError(
                f"{type(self).__name__} has no optimizer: set `optimizer` (class_path: torch.optim.Adam, init_args: "
                "{lr: 0.001} in YAML, a function of the parameters in Python)"
            )
        return configure_optimizer(self.trainer, self.groups(), self._optimizer, self._lr_scheduler)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = {f"{stage}/{name}": value for name, value in self.evaluate(stage).items()}
        shown = {name: value for name, value in values.items() if self.monitor and name == self.monitor[0]}
        self.log_dict({name: value for name, value in values.items() if name not in shown})
        self.log_dict(shown, prog_bar=True)

    @abstractmethod
    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics over all batches of a stage, equal on all processes, and reset them.

        Args:
            stage: Name of the stage, `val` or `test`.
        """

    def figures(self, stage: str) -> dict[str, Figure]:
        """Return figures of the last evaluation for the log, by name.

        Args:
            stage: Name of the stage, `val` or `test`.
        """
        return {}

    def score_counts(self, stage: str) -> Tensor | None:
        """Return histograms of the probabilities of each class in the last evaluation, or None.

        int64, (2, K, T): examples of other classes, then of the class, in T equal steps of probability from 0 to 1.

        Args:
            stage: Name of the stage, `val` or `test`.
        """
        return None


def resolve_input_spec(
    input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None,
    image_shape: Sequence[int] | None,
    default: Sequence[int],
) -> InputSpec:
    """Return the inputs of a model, given under the current name of the setting or the former one.

    Args:
        input_spec: Setting `input_spec`, in one of the forms of `InputSpec.parse`.
        image_shape: Setting `image_shape`, as in versions before 0.2 and their checkpoints.
        default: Shape (C, H, W) of the images where neither is given.

    Raises:
        InputError: The two disagree, or have another form.
    """
    if input_spec is None:
        return InputSpec.parse(default if image_shape is None else image_shape)
    spec = InputSpec.parse(input_spec)
    if image_shape is not None and spec.modality == "image" and tuple(image_shape) != spec.shape:
        raise InputError(f"image_shape is {tuple(image_shape)}, but input_spec is {spec}: give input_spec alone")
    return spec


def compile_in_place(module: torch.nn.Module, mode: bool | str) -> None:
    """Compile a backbone in place, which leaves the names of its tensors as they are (pl#21836).

    torch counts the compiled forms of all backbones of a process together. With its own limit of 8 the third or fourth
    network of a notebook or a bench would no longer be compiled.

    Args:
        module: The backbone.
        mode: Mode of `torch.compile`, True for its default, or False to leave the backbone uncompiled.
    """
    if mode:
        import torch.compiler.config as limits  # slow to import

        limits.recompile_limit = max(limits.recompile_limit, COMPILED_FORMS)
        module.compile(mode=None if mode is True else mode)
