"""Interface of methods that are fitted to maps of features of normal examples in one pass, without gradient steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from sft_lightning.anomaly.maps import smooth_map
from sft_lightning.classifiers.base import FittedModule

MOST = 4_000_000_000  # bytes of what a method keeps, or needs at once while it is fitted


class MapBatch(NamedTuple):
    """Maps of features of some normal examples.

    Attributes:
        positions: Position of each example among all of them, int64, (B,).
        maps: Maps of a frozen network, the finest first, (B, C, h, w) each.
    """

    positions: Tensor
    maps: list[Tensor]


class Scores(NamedTuple):
    """How far examples are from normal ones; the larger, the farther.

    Attributes:
        example: Score of each example, (B,).
        map: Score of each place, at least 0, (B, H, W).
    """

    example: Tensor
    map: Tensor


class AnomalyMethod(FittedModule, ABC):
    """Method that learns from normal examples alone; its state is that of a module.

    A subclass names what it learns in `fitted_buffers`, sets it in `fit` and uses it in `score`.

    Attributes:
        strides: Strides of the maps that it takes unless the user chooses others.
        sigma: Standard deviation of the Gaussian that smooths maps of scores, in places of the input.
    """

    strides: ClassVar[tuple[int, ...]]
    sigma: float = 4.0

    @property
    def constant_buffers(self) -> tuple[str, ...]:
        """Names of buffers that no training step changes, which DDP need not broadcast."""
        return self.fitted_buffers

    @property
    def is_fitted(self) -> bool:
        """Whether the method has learned normal examples."""
        return bool(getattr(self, self.fitted_buffers[0]).numel())

    @abstractmethod
    def fit(self, batches: Iterator[MapBatch], count: int, seed: int) -> str:
        """Learn from normal examples; with several processes, each one gives its share, and all learn the same.

        Args:
            batches: Maps of the share of this process.
            count: Number of examples of all processes.
            seed: Seed of all random choices.

        Returns:
            What is kept and how much memory it takes, as the rest of a sentence that starts with the method's name.

        Raises:
            InputError: It takes too much memory.
        """

    @abstractmethod
    def score(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Scores:
        """Compare examples with normal ones.

        Args:
            maps: Maps of features, the finest first, (B, C, h, w) each.
            size: Height and width of the map of scores.
        """

    def enlarge(self, distances: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge a map of scores bilinearly and smooth it, (B, H, W).

        Args:
            distances: Scores, (B, h, w).
            size: Height and width of the result.
        """
        return smooth_map(distances, size, self.sigma)
