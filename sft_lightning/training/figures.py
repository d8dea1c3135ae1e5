"""What the figures of an evaluation show; a callback draws them."""

from dataclasses import dataclass

from torch import Tensor

from sft_lightning.utils.inputs import Inputs


@dataclass(frozen=True)
class ExampleRows:
    """Rows of examples, one above the other, such as inputs and their reconstructions.

    Attributes:
        rows: Network inputs of each row, (N, ...) each.
    """

    rows: tuple[Inputs, ...]


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of predictions.

    Attributes:
        counts: Number of examples, int64, (K, K): rows are true classes, columns predicted ones.
    """

    counts: Tensor


Figure = ExampleRows | ConfusionMatrix
