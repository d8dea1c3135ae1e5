"""What all losses on unlabeled examples share: the interface of a strategy, masks, sharpening, distribution alignment.

A strategy of one's own is a class of some thirty lines: it derives from `Strategy` (or from `Consistency` where a weak
view gives the target of a strong one) and is named by its class path in YAML. No strategy but those that must
(reconstruction, VAT, MixMatch) touches pixels: features and logits come from the paradigm.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.modality import mix_tensors
from sft_lightning.utils.renamed import refuse_renamed


class Outputs(NamedTuple):
    """What a network says of a batch.

    Attributes:
        features: (B, F).
        logits: (B, C).
    """

    features: Tensor
    logits: Tensor


class Network(Protocol):
    """What a strategy may ask of the paradigm."""

    def outputs(self, x: Tensor) -> Outputs:
        """Features and logits of the trained network, with gradient where that is enabled."""

    def teacher_logits(self, x: Tensor) -> Tensor:
        """Logits of the averaged network, without gradient."""


class StrategyContext(NamedTuple):
    """What a strategy is told before the first step.

    Attributes:
        num_classes: C.
        num_features: F.
        image_shape: (C, H, W).
    """

    num_classes: int
    num_features: int
    image_shape: tuple[int, int, int]


class StrategyInputs(NamedTuple):
    """What a strategy is given of one training step.

    Attributes:
        network: The paradigm.
        unlabeled: The batch: `weak`, `indices`, `draw`, and `weak_2` and `strong` where `views` asks for them.
        student: Outputs of the view that `student` of the strategy names, with gradient.
        labeled: `x`, `y` and `num_weak`, where the strategy says `needs_labels` or the schedule is joint; else None.
        labeled_outputs: Outputs of the labeled batch, with gradient; None where `labeled` is.
        mix: `Views.mix` of the modality: from inputs, positions of partners and shares to mixed inputs.
    """

    network: Network
    unlabeled: Any
    student: Outputs
    labeled: Any
    labeled_outputs: Outputs
    mix: Callable[[Tensor, Tensor, Tensor], Tensor] = mix_tensors


class StrategyOutput(NamedTuple):
    """What a strategy gives back.

    Attributes:
        loss: L_u, a scalar with gradient.
        pseudo_labels: (B,) int64: the class each example is taken for, or None where there is no such thing.
        weight: (B,) in [0, 1]: how much each counts; 0 is rejected.
        supervised: L_s where the strategy replaces it (MixMatch), else None.
        labeled_logits: (B, C): logits of the labeled batch where the strategy replaces them (AdaMatch), else None.
        logs: Further scalars, such as thresholds.
    """

    loss: Tensor
    pseudo_labels: Tensor | None = None
    weight: Tensor | None = None
    supervised: Tensor | None = None
    labeled_logits: Tensor | None = None
    logs: Mapping[str, Tensor] = {}


class Strategy(nn.Module, ABC):
    """L_u: what is learned from examples without labels.

    Attributes:
        views: The views of an unlabeled example that the data module makes: `weak`, `weak_2`, `strong`.
        student: The view that goes through the network together with the labeled examples, or None.
        needs_labels: Whether the labeled batch takes part in L_u.
        needs_teacher: Whether `teacher_logits` is used.
        computes_supervised_loss: Whether the strategy computes L_s, too.
        modalities: Kinds of inputs that the strategy supports, such as `image`; None for all.
    """

    views: ClassVar[tuple[str, ...]] = ("weak",)
    student: ClassVar[str | None] = "weak"
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    computes_supervised_loss: ClassVar[bool] = False
    modalities: ClassVar[tuple[str, ...] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse former names of hooks."""
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, told="log_metrics", own_supervised="computes_supervised_loss")

    def build(self, context: StrategyContext) -> None:
        """Makes buffers and parameters, once, before training.

        Args:
            context: Sizes of the network and the images.
        """

    def start(self, num_unlabeled: int) -> None:
        """Called when the data is known.

        Args:
            num_unlabeled: Number of unlabeled examples.
        """

    @abstractmethod
    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """L_u of one batch.

        Args:
            step: Batch, network and outputs of the step.
        """


class Consistency(Strategy):
    """The family of FixMatch: targets from the weak view, without gradient, are learned on the strong view."""

    views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    student: ClassVar[str | None] = "strong"

    @abstractmethod
    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """What the strong view shall say, and how much each example counts; called without gradient.

        Args:
            logits: Logits of the weak view, float32, (B, C).
            step: Batch, network and outputs of the step.

        Returns:
            Targets, (B,) classes or (B, C) probabilities, and weights, (B,) in [0, 1].
        """

    def log_metrics(self) -> Mapping[str, Tensor]:
        """Thresholds and the like for the log."""
        return {}

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Weighted cross-entropy of the strong view, mean over the whole batch."""
        with torch.no_grad():
            logits = at_least_float32(step.network.outputs(step.unlabeled.weak).logits)
            target, weight = self.targets(logits, step)
        loss = masked_cross_entropy(self.adjusted(step.student.logits), target, weight)
        return StrategyOutput(loss, target if target.ndim == 1 else target.argmax(1), weight, logs=self.log_metrics())

    def adjusted(self, logits: Tensor) -> Tensor:
        """The strong view's logits as they enter the loss."""
        return logits


def at_least_float32(logits: Tensor) -> Tensor:
    """Raises the half precision of autocast, in which thresholds and running means would be coarse.

    Args:
        logits: Logits of any floating type.
    """
    return logits.float() if logits.dtype.itemsize < 4 else logits


def masked_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy, each example times its weight, divided by the size of the whole batch.

    Args:
        logits: (B, C).
        target: (B,) classes or (B, C) probabilities.
        weight: (B,).
    """
    return (F.cross_entropy(logits, target, reduction="none") * weight).mean()


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalized (Berthelot et al. 2019, eq. 7).

    Args:
        probabilities: (B, C).
        temperature: Above 0; below 1 sharpens.
    """
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def align_distribution(probabilities: Tensor, toward: Tensor, running: Tensor) -> Tensor:
    """Distribution alignment: predictions times wanted over running mean, normalized (Berthelot et al. 2020).

    Args:
        probabilities: (B, C).
        toward: (C,) the distribution that is wanted.
        running: (C,) running mean of the predictions.
    """
    scaled = probabilities * (toward / running.clamp_min(1e-6))
    return scaled / scaled.sum(1, keepdim=True)


@contextmanager
def frozen_bn_stats(network: object) -> Iterator[None]:
    """Keeps running statistics of batch normalization from moving with pictures that are attacks, or seen before.

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


def ema_update_(running: Tensor, value: Tensor, momentum: float) -> None:
    """In place: running = momentum * running + (1 - momentum) * value.

    Args:
        running: Buffer of the running average; changed in place.
        value: New value, of the buffer's shape.
        momentum: Share of the old value that is kept, from 0 to 1.
    """
    running.mul_(momentum).add_(value.to(running.dtype), alpha=1 - momentum)
