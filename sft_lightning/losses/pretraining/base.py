"""The interface of self-supervised objectives: losses that compare several random views of the same examples.

A custom objective is a class of some forty lines: it derives from `Objective`, builds its projector in `build`, and is
named by its class path in YAML. It sees features, never inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ObjectiveInputs(NamedTuple):
    """Inputs of an objective for one training step, all in float32 or float64.

    Attributes:
        outputs: Projected, then predicted features of each view, (B, P), with gradient.
        targets: Projections of each view, (B, P), without gradient: those of the momentum network where the objective
            sets `needs_momentum`, else those of the network itself before the predictor.
        global_step: Number of optimizer steps so far, the same on all processes; a seed for random numbers.
    """

    outputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    global_step: int


class ObjectiveOutput(NamedTuple):
    """Result of an objective for one training step.

    Attributes:
        loss: Scalar with gradient, whose mean over processes is the loss of all their examples.
        logs: Further scalars, such as the terms of the loss.
    """

    loss: Tensor
    logs: Mapping[str, Tensor] = {}


class Objective(nn.Module, ABC):
    """Base of the self-supervised objectives.

    Attributes:
        num_views: Number of random views of each example.
        needs_momentum: Whether the targets come from a momentum network: a moving average of encoder and projector.
        decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
        projector: Network from features to projections, discarded after training.
        predictor: Network from projections to predicted targets, discarded after training.
    """

    num_views: int = 2
    needs_momentum: ClassVar[bool] = False
    decay: float = 0.0
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

    def forward(
        self, features: Sequence[Tensor], targets: Sequence[Tensor] | None, global_step: int
    ) -> ObjectiveOutput:
        """Compute the loss of a batch in full precision, since similarities and covariances are coarse in half.

        Args:
            features: Features of each view, (B, F), with gradient.
            targets: Projections of each view by the momentum network, (B, P), or None if it is not needed.
            global_step: Number of optimizer steps so far.
        """
        projections = [self.projector(f) for f in features]
        outputs = [self.predictor(z) for z in projections]
        targets = [z.detach() for z in projections] if targets is None else targets
        with torch.autocast(features[0].device.type, enabled=False):
            result = self.loss(ObjectiveInputs(_in_full_precision(outputs), _in_full_precision(targets), global_step))
            spread = compute_spread(_in_full_precision(projections)[0].detach())
            return ObjectiveOutput(result.loss, {**result.logs, "projection_spread": spread})

    @abstractmethod
    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss of a batch.

        Args:
            step: Outputs and targets of each view.
        """


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
