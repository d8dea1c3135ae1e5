"""Shared parts of the losses on unlabeled examples: strategy interface, masks, sharpening, distribution alignment.

A custom strategy is a class of some thirty lines: it derives from `Strategy` (or from `Consistency` where a weak
view gives the target of a strong one) and is named by its class path in YAML. Only reconstruction, VAT and MixMatch
touch inputs, because they must; all others use the features and logits of the paradigm.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.contract import FewLabelData
from sft_lightning.data.modality import MixedFeatures, mix_inputs
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.renamed import refuse_renamed, warn_renamed

_REFUSED = {  # why most strategies do not support a task
    "multi_label": "examples of one class each, and these have several (label_separator): set ClassAwarePseudoLabels "
    "or MeanTeacher",
    "segmentation": "one label of each example, and these have masks: set FixMatch, UniMatch or MeanTeacher",
}
_LONG_PASSED = 2**40  # updates after which t / (t + 1) is 1 in float32


class Outputs(NamedTuple):
    """Outputs of a network for a batch.

    Attributes:
        features: Features, (B, F).
        logits: Logits, (B, C).
    """

    features: Tensor
    logits: Tensor


class Network(Protocol):
    """Interface of the paradigm for strategies."""

    def outputs(self, x: Inputs) -> Outputs:
        """Return features and logits of the trained network, with gradient where that is enabled."""

    def teacher_logits(self, x: Inputs) -> Tensor:
        """Return logits of the averaged network, without gradient."""

    def teacher_outputs(self, x: Inputs) -> Outputs:
        """Return features and logits of the averaged network, without gradient."""


class StrategyContext(NamedTuple):
    """What a strategy gets before the first step.

    Attributes:
        num_classes: Number of classes, C.
        num_features: Number of features, F.
        backbone: Network from inputs to features, with its `input_spec`.
        task: Name of the task.
    """

    num_classes: int
    num_features: int
    backbone: Encoder
    task: str = "classification"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Former name of the shape in `backbone.input_spec`."""
        warn_renamed("StrategyContext.image_shape", "backbone.input_spec.shape")
        return self.backbone.input_spec.shape


class StrategyInputs(NamedTuple):
    """Inputs of a strategy for one training step.

    Attributes:
        network: The paradigm.
        unlabeled: Unlabeled batch: `weak`, `indices`, `seed`, and `weak_2`, `strong` and `strong_2` where `views` asks
            for them.
        student: Outputs of the view that `student` of the strategy names, with gradient.
        labeled: Labeled batch (`x`, `y`, `num_weak`) where the strategy sets `needs_labels` or the schedule is joint.
        labeled_outputs: Outputs of the labeled batch, with gradient; None where `labeled` is None.
        mix: Function that mixes inputs with their partners (`Views.mix` of the modality).
        weak: Outputs of the weak view without gradient; `Consistency` sets them for `targets`.
    """

    network: Network
    unlabeled: Any
    student: Outputs
    labeled: Any
    labeled_outputs: Outputs
    mix: Callable[[Inputs, Tensor, Tensor], Inputs | MixedFeatures] = mix_inputs
    weak: Outputs | None = None


class StrategyOutput(NamedTuple):
    """Result of a strategy for one training step.

    Attributes:
        loss: L_u, a scalar with gradient.
        pseudo_labels: Predicted class of each example, int64, (B,); None for strategies without pseudo-labels.
        weight: Weight of each example in [0, 1], (B,); 0 rejects it.
        supervised: L_s where the strategy replaces it (MixMatch), else None.
        labeled_logits: Logits of the labeled batch, (B, C), where the strategy replaces them (AdaMatch), else None.
        logs: Further scalars, such as thresholds.
    """

    loss: Tensor
    pseudo_labels: Tensor | None = None
    weight: Tensor | None = None
    supervised: Tensor | None = None
    labeled_logits: Tensor | None = None
    logs: Mapping[str, Tensor] = {}


class Strategy(nn.Module, ABC):
    """Base of the losses on unlabeled examples, L_u.

    Attributes:
        views: The views of an unlabeled example that the data module makes: `weak`, `weak_2`, `strong`, `strong_2`.
        student: The view that goes through the network together with the labeled examples, or None.
        needs_labels: Whether the labeled batch takes part in L_u.
        needs_teacher: Whether the averaged network is used.
        computes_supervised_loss: Whether the strategy computes L_s, too.
        modalities: Kinds of inputs that the strategy supports, such as `image`; None for all.
        needs_measured_inputs: Whether the strategy computes with the numbers of inputs themselves, which numbers of a
            list, such as those of words, do not allow.
        tasks: Tasks that the strategy supports.
    """

    views: ClassVar[tuple[str, ...]] = ("weak",)
    student: ClassVar[str | None] = "weak"
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    computes_supervised_loss: ClassVar[bool] = False
    modalities: ClassVar[tuple[str, ...] | None] = None
    needs_measured_inputs: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse former names of hooks."""
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, told="log_metrics", own_supervised="computes_supervised_loss")

    def check_support(self, backbone: Encoder, task: str) -> None:
        """Refuse inputs and tasks that the strategy does not support.

        Args:
            backbone: Network with the modality of its inputs.
            task: Name of the task.

        Raises:
            InputError: The strategy does not support the inputs or the task.
        """
        name = type(self).__name__
        if self.modalities is not None and backbone.modality not in self.modalities:
            raise InputError(
                f"strategy {name} supports {', '.join(self.modalities)} inputs, and backbone {backbone.name!r} takes "
                f"{backbone.modality}: choose another strategy"
            )
        if self.needs_measured_inputs and not backbone.input_spec.dtype.startswith("float"):
            raise InputError(
                f"strategy {name} computes with the numbers of inputs, and those of a {backbone.input_spec.noun} "
                "are entries of a list: choose another strategy, such as SoftMatch"
            )
        if task in _REFUSED and task not in self.tasks:
            raise InputError(f"strategy {name} learns from {_REFUSED[task]}")
        if task not in self.tasks:
            why = ", and each example has one class" if self.tasks == ("multi_label",) else f", and the task is {task}"
            raise InputError(f"strategy {name} supports {', '.join(self.tasks)}{why}: choose another strategy")

    def build(self, context: StrategyContext) -> None:
        """Create buffers and parameters, once, before training.

        Args:
            context: Numbers of classes and features, and the backbone.
        """

    def start(self, num_unlabeled: int) -> None:
        """Prepare for the data; called once it is loaded.

        Args:
            num_unlabeled: Number of unlabeled examples.
        """

    def start_labeled(self, num_labeled: int) -> None:
        """Prepare for the labeled examples, whose positions are `labeled.indices`; called before `start`.

        Args:
            num_labeled: Number of labeled examples, 0 if it is unknown.
        """

    def update_average(self, decay: float) -> None:
        """Average what the strategy averages beside the network; called after each update of the averaged network.

        Args:
            decay: Share of the old average that this update keeps.
        """

    def begin_epoch(self, network: LightningModule, data: FewLabelData, epoch: int) -> None:
        """Prepare for an epoch, after a checkpoint was loaded; called on every process.

        Args:
            network: The paradigm.
            data: Data module after its setup.
            epoch: Number of the epoch, counted from 0.
        """

    @abstractmethod
    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute L_u of one batch.

        Args:
            step: Batch, network and outputs of the step.
        """


class Consistency(Strategy):
    """Base of the FixMatch family: the strong view learns targets that the weak view gives without gradient."""

    views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    student: ClassVar[str | None] = "strong"

    def __init__(self, freeze_target_stats: bool = False, unbiased_means: bool = False) -> None:
        """Store the settings.

        Args:
            freeze_target_stats: Whether the pass that makes the targets leaves the running statistics of batch
                normalization alone, so that only views that are learned shape them.
            unbiased_means: Whether running means, of strategies that keep some, are plain means at first, so that
                their first thresholds follow the network, not 1 / C.
        """
        super().__init__()
        self.freeze_target_stats, self.unbiased_means = freeze_target_stats, unbiased_means

    @abstractmethod
    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return targets of the strong view and weights of the examples; called without gradient.

        Args:
            logits: Logits of the weak view, float32, (B, C).
            step: Batch, network and outputs of the step.

        Returns:
            Targets, (B,) classes or (B, C) probabilities, and weights, (B,) in [0, 1]; of pixels, (B, H, W) each.
        """

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Return scalars for the log, such as thresholds."""
        return {}

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute the weighted cross-entropy of the strong view, averaged over the whole batch."""
        with torch.no_grad():
            weak = self.weak_outputs(step)
            target, weight = self.targets(at_least_float32(weak.logits), step._replace(weak=weak))
            if weight.ndim == 3:
                target, weight = step.unlabeled.align_pixels(target, weight, step.unlabeled.cut)
        loss = masked_cross_entropy(self.adjusted(step.student.logits), target, weight)
        classes = target.argmax(1) if target.is_floating_point() else target
        return StrategyOutput(loss, classes, weight, logs=self.log_metrics())

    def weak_outputs(self, step: StrategyInputs) -> Outputs:
        """Return features and logits of the weak view."""
        with frozen_bn_stats(step.network) if self.freeze_target_stats else nullcontext():
            return step.network.outputs(step.unlabeled.weak)

    def weak_logits(self, step: StrategyInputs) -> Tensor:
        """Return the logits of the weak view, at least float32, (B, C)."""
        return at_least_float32(self.weak_outputs(step).logits)

    def adjusted(self, logits: Tensor) -> Tensor:
        """Return the strong view's logits as they enter the loss."""
        return logits


def at_least_float32(logits: Tensor) -> Tensor:
    """Convert half precision to float32: thresholds and running means would be too coarse in that of autocast.

    Args:
        logits: Logits of any floating type.
    """
    return logits.float() if logits.dtype.itemsize < 4 else logits


def masked_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute the cross-entropy with a weight for each example or pixel, divided by the size of the whole batch.

    Args:
        logits: Logits, (B, C) or (B, C, H, W).
        target: Classes, (B,) or (B, H, W), or probabilities of the shape of the logits.
        weight: Weights, (B,) or (B, H, W).
    """
    return (F.cross_entropy(logits, target, reduction="none") * weight).mean()


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Sharpen probabilities: p^(1/T), normalized (Berthelot et al. 2019, eq. 7).

    Args:
        probabilities: Probabilities, (B, C).
        temperature: Temperature T above 0; values below 1 sharpen.
    """
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def align_distribution(probabilities: Tensor, toward: Tensor, running: Tensor) -> Tensor:
    """Scale predictions by the target distribution over their running mean, normalized (Berthelot et al. 2020).

    Args:
        probabilities: Predicted probabilities, (B, C).
        toward: Target distribution, (C,).
        running: Running mean of the predictions, (C,).
    """
    scaled = probabilities * (toward / running.clamp_min(1e-6))
    return scaled / scaled.sum(1, keepdim=True)


@contextmanager
def frozen_bn_stats(network: object) -> Iterator[None]:
    """Keep the running statistics of batch normalization from moving, as for adversarial or repeated inputs.

    Args:
        network: Module whose statistics are kept; an `nn.Module`.
    """
    assert isinstance(network, nn.Module)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [(m, m.momentum) for m in norms]
    counted = [m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for (m, momentum), count in zip(kept, counted, strict=True):
            m.momentum = momentum
            if count is not None and m.num_batches_tracked is not None:
                m.num_batches_tracked.copy_(count)


def ema_update_(running: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """Update a running average in place: running = momentum * running + (1 - momentum) * value.

    Args:
        running: Buffer of the running average; changed in place.
        value: New value, of the buffer's shape.
        momentum: Share of the old value that is kept, from 0 to 1; a number, or a scalar of the buffer's device.
    """
    if isinstance(momentum, Tensor):
        running.mul_(momentum).add_(value.to(running.dtype) * (1 - momentum))
    else:
        running.mul_(momentum).add_(value.to(running.dtype), alpha=1 - momentum)


class MomentumWarmup(nn.Module):
    """Momentum of running means that can start without bias: update t, from 0, keeps min(momentum, t / (t + 1)).

    Until t / (t + 1) reaches the momentum, a running mean is the plain mean of all values so far. With the full
    momentum from the first update on, it would stay near its initial value for about 1 / (1 - momentum) updates.

    Attributes:
        added_buffers: Buffers that checkpoints of version 0.2 lack. They load as if the start had long passed.
    """

    added_buffers: ClassVar[tuple[str, ...]] = ("updates",)
    updates: Tensor

    def __init__(self, is_enabled: bool) -> None:
        """Register the number of updates so far, t.

        Args:
            is_enabled: Whether the momentum rises; otherwise it is the largest from the first update on.
        """
        super().__init__()
        self.is_enabled = is_enabled
        self.register_buffer("updates", torch.tensor(0))

    def next_momentum(self, momentum: float) -> float | Tensor:
        """Return the momentum of the next update, and count the update where it matters.

        Args:
            momentum: Largest momentum.
        """
        if not self.is_enabled:
            return momentum
        now = (self.updates / (self.updates + 1)).clamp(max=momentum)
        self.updates += 1
        return now

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}updates", torch.tensor(_LONG_PASSED))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
