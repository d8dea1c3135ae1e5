"""What callbacks and commands look for in a module, each as a protocol; a module of the user's own may have some."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from sft_lightning.training.figures import Figure
from sft_lightning.training.judges import Judge
from sft_lightning.utils.inputs import Inputs


@runtime_checkable
class ComputesFeatures(Protocol):
    """Module with a representation of its inputs."""

    def features(self, x: Inputs) -> Tensor:
        """Return features, (B, ...)."""


@runtime_checkable
class HasFigures(Protocol):
    """Module with figures of its last evaluation."""

    def figures(self, stage: str) -> dict[str, Figure]:
        """Return figures by name."""


@runtime_checkable
class CountsScores(Protocol):
    """Classifier with histograms of the probabilities in its last evaluation."""

    class_names: list[str]

    def score_counts(self, stage: str) -> Tensor | None:
        """Return the counts, (2, K, T), or None."""


@runtime_checkable
class NamesClasses(Protocol):
    """Module whose outputs are classes."""

    class_names: list[str]


@runtime_checkable
class IsMonitored(Protocol):
    """Module that says which validation metric chooses the best checkpoint, and `min` or `max`."""

    monitor: tuple[str, str] | None  # None for a module whose last checkpoint is its only one


class PseudoLabels(NamedTuple):
    """Pseudo-labels of the last unsupervised step, for callbacks such as `PseudoLabelHealth`.

    Attributes:
        indices: Positions in the unlabeled split, (B,).
        classes: Pseudo-labels, (B,).
        weight: Weights in [0, 1], (B,), or None where every example counts.
    """

    indices: Tensor
    classes: Tensor
    weight: Tensor | None


@runtime_checkable
class MakesPseudoLabels(Protocol):
    """Classifier that keeps the pseudo-labels of its last step."""

    num_classes: int
    pseudo_labels: PseudoLabels | None


@runtime_checkable
class HasSupervisedLoss(Protocol):
    """Module that keeps the loss on labels of its last step, or None after a step without."""

    supervised_loss: Tensor | None


@runtime_checkable
class MayHaveTrainedHead(Protocol):
    """Model that says whether its head started from trained or fitted weights for some of its classes."""

    has_trained_head: bool


@runtime_checkable
class HasControl(Protocol):
    """Module that may train a second copy of its network on the labels alone."""

    control: nn.Module | None


@runtime_checkable
class LearnsFromUnlabeled(Protocol):
    """Model that learns from labels alone for `warmup_steps`, and then from unlabeled examples, too."""

    has_trained_head: bool
    warmup_steps: int

    @property
    def judge(self) -> Judge:
        """Judge of the network, and of earlier ones, on validation examples."""
