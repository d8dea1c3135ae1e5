"""The interface of self-supervised objectives, most of which compare several random views of the same examples.

A custom objective is a class of some forty lines: it derives from `ViewObjective`, builds its projector in `build`, and
is named by its class path in YAML. It sees features, never inputs. Only masked autoencoding touches inputs, because it
must; it derives from `Objective`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.batches import Unlabeled
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs

Network = Callable[[Inputs], Tensor]  # from inputs to features or projections


class ObjectiveInputs(NamedTuple):
    """Inputs of an objective for one training step, all in float32 or float64.

    Attributes:
        outputs: Projected, then predicted features of each view, (B, P), with gradient.
        targets: Projections of each view, (B, P), without gradient: those of the momentum network where the objective
            sets `needs_momentum`, else those of the network itself before the predictor. The momentum network sees no
            local views.
        global_step: Number of optimizer steps so far, the same on all processes; a seed for random numbers.
        epoch: Number of epochs so far.
    """

    outputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    global_step: int
    epoch: int = 0


class ObjectiveOutput(NamedTuple):
    """Result of an objective for one training step.

    Attributes:
        loss: Scalar with gradient, whose mean over processes is the loss of all their examples.
        logs: Further scalars, such as the terms of the loss.
    """

    loss: Tensor
    logs: Mapping[str, Tensor] = {}


class ObjectiveStep(NamedTuple):
    """What a paradigm gets from an objective for one training step.

    Attributes:
        loss: Scalar with gradient, whose mean over processes is the loss of all their examples.
        logs: Further scalars.
        features: Features of the first view, (B, F), without gradient.
        make_rows: Function that returns rows of examples that show what the objective does, (B, ...) each.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]
    features: Tensor
    make_rows: Callable[[], Sequence[Inputs]]


class Objective(nn.Module, ABC):
    """Base of the self-supervised objectives.

    Attributes:
        num_views: Number of random views of each example.
        num_local_views: Number of further, smaller views (multi-crop).
        needs_momentum: Whether the targets come from a momentum network: a moving average of encoder and projector.
        decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
        takes_compiled: Whether the encoder may be compiled, which hides what happens inside of it.
    """

    takes_compiled: ClassVar[bool] = True
    num_views: int = 2
    num_local_views: int = 0
    needs_momentum: ClassVar[bool] = False
    decay: float = 0.0

    @abstractmethod
    def attach(self, encoder: Encoder) -> None:
        """Create the networks on top of an encoder; called once, before training.

        Args:
            encoder: Network from inputs to features.

        Raises:
            InputError: The objective does not go with this encoder.
        """

    def list_averaged(self, encoder: Encoder) -> dict[str, nn.Module]:
        """Return the networks that make up the momentum network when applied in turn, by name.

        Args:
            encoder: Network from inputs to features.
        """
        return {"encoder": encoder}

    @abstractmethod
    def compute(
        self, encoder: Encoder, momentum: Network | None, batch: Unlabeled, global_step: int, epoch: int
    ) -> ObjectiveStep:
        """Compute the loss of a batch.

        Args:
            encoder: Network from inputs to features, the one of `attach`.
            momentum: Momentum network from inputs to projections, without gradient, or None if it is not needed.
            batch: Examples, with `num_views` views in `crops`, then `num_local_views` smaller ones.
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """


class ViewObjective(Objective):
    """Base of the objectives that compare random views of the same examples.

    Attributes:
        projector: Network from features to projections, discarded after training.
        predictor: Network from projections to predicted targets, discarded after training.
    """

    projector: nn.Module
    predictor: nn.Module

    @abstractmethod
    def build(self, num_features: int) -> None:
        """Create `projector` and, where the objective has one, `predictor`; called once, before training.

        Args:
            num_features: Number F of features.
        """

    def __init__(self) -> None:
        """Start without a predictor."""
        super().__init__()
        self.predictor = nn.Identity()

    def attach(self, encoder: Encoder) -> None:
        """Build projector and predictor.

        Args:
            encoder: Network from inputs to features.

        Raises:
            InputError: The encoder takes no local views.
        """
        if self.num_local_views:
            encoder.accept_smaller_inputs()
        self.build(encoder.num_features)

    def list_averaged(self, encoder: Encoder) -> dict[str, nn.Module]:
        """Return encoder and projector.

        Args:
            encoder: Network from inputs to features.
        """
        return {"encoder": encoder, "projector": self.projector}

    def compute(
        self, encoder: Encoder, momentum: Network | None, batch: Unlabeled, global_step: int, epoch: int
    ) -> ObjectiveStep:
        """Compute the loss of all views, each of which has batch statistics of its own.

        Args:
            encoder: Network from inputs to features.
            momentum: Momentum network from inputs to projections, without gradient, or None if it is not needed.
            batch: Examples with their views.
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """
        features = [encoder(view) for view in batch.crops[: self.num_views]]
        features += [_encode_local(encoder, view) for view in batch.crops[self.num_views :]]
        targets = None if momentum is None else [momentum(view) for view in batch.crops[: self.num_views]]
        loss, logs = self(features, targets, global_step, epoch)
        return ObjectiveStep(loss, logs, features[0].detach(), lambda: batch.crops[: self.num_views])

    def forward(
        self, features: Sequence[Tensor], targets: Sequence[Tensor] | None, global_step: int, epoch: int = 0
    ) -> ObjectiveOutput:
        """Compute the loss of a batch in full precision, since similarities and covariances are coarse in half.

        Args:
            features: Features of each view, (B, F), with gradient.
            targets: Projections of each view by the momentum network, (B, P), or None if it is not needed.
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """
        projections = [self.projector(f) for f in features]
        outputs = [self.predictor(z) for z in projections]
        targets = [z.detach() for z in projections] if targets is None else targets
        with torch.autocast(features[0].device.type, enabled=False):
            inputs = _in_full_precision(outputs), _in_full_precision(targets)
            result = self.loss(ObjectiveInputs(*inputs, global_step, epoch))
            spread = compute_spread(_in_full_precision(projections)[0].detach())
            return ObjectiveOutput(result.loss, {**result.logs, "projection_spread": spread})

    @abstractmethod
    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss of a batch.

        Args:
            step: Outputs and targets of each view.
        """


def _encode_local(encoder: Encoder, view: Inputs) -> Tensor:
    try:
        features: Tensor = encoder(view)
    except AssertionError as error:  # as networks refuse sizes
        raise InputError(
            f"backbone {encoder.name!r} does not take the local crops ({error}): set the side of pretrain_view_local"
        ) from error
    return features


def compute_spread(projections: Tensor) -> Tensor:
    """Compute how far projections point in different directions: 1 if their mean direction is 0, 0 if all are the same.

    It is the deviation of normalized outputs by which SimSiam shows its collapse, times the root of their number.

    Args:
        projections: Projections, (B, P).
    """
    mean = F.normalize(projections, dim=1).mean(0)
    return (1 - mean.square().sum()).clamp_min(0).sqrt()


def _in_full_precision(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(v.float() if v.dtype.itemsize < 4 else v for v in values)
