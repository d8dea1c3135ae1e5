"""Trials of recipes on networks that give maps, all at one size of the examples, which the plan chooses."""

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.data.vision.image_stats import find_largest_side
from sft_lightning.networks.encoder import Encoder, get_architecture
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.judged import JudgedRecipes, ResultT
from sft_lightning.solver.map_starts import MapStart, open_starts
from sft_lightning.solver.plan import DELIVERY_SECONDS, START_SECONDS, TRAININGS_END, Cost, Stage
from sft_lightning.solver.recipes import Recipe
from sft_lightning.solver.speed import measure_busyness

_READ = 8  # examples by which the time of reading is measured


class MapTrials(JudgedRecipes[ResultT]):
    """Recipes on networks that give maps that were tried, and their results.

    Attributes:
        sizes: Sides at which all recipes may see the examples, in pixels.
        write_seconds: Seconds to write the prediction of an example, about.
        predicted_shape: Shape of the prediction of an example; empty for a number.
        read_seconds: Measured seconds to read an example with its annotation.
    """

    sizes: ClassVar[tuple[int, ...]]
    write_seconds: ClassVar[float]
    predicted_shape: ClassVar[tuple[int, ...]]
    read_seconds: float

    @abstractmethod
    def prepare(self, network: Encoder) -> object:
        """Build on a network what recipes need, and refuse one that does not give it.

        Args:
            network: Network of a start.
        """

    @abstractmethod
    def measure_speed(self, start: MapStart) -> None:
        """Measure how long a network takes at the first size.

        Args:
            start: Start.
        """

    @abstractmethod
    def predict_least(self, starts: Sequence[MapStart], side: int) -> float:
        """Predict the seconds of what is to fit in at a size.

        Args:
            starts: Starts.
            side: Side of the examples in pixels.
        """

    @abstractmethod
    def read_fold(self, cli: SFTCLI) -> Tensor:
        """Return the predictions of the fold that a training holds out, (K, *predicted_shape).

        Args:
            cli: Call of `fit` that has trained.
        """

    @abstractmethod
    def make_result(self, recipe: Recipe, found: Tensor) -> ResultT:
        """Return the result of a recipe.

        Args:
            recipe: Recipe.
            found: Predictions of the labeled examples without their fold, (R, N, *predicted_shape).
        """

    def judge(self, recipe: Recipe, start: MapStart, seconds: float = math.inf) -> ResultT | None:
        """Cross-fit a recipe, as far as an earlier call has not done so, and keep its result.

        Args:
            recipe: Recipe.
            start: Network that it starts from.
            seconds: Time for it.

        Returns:
            The result, or None where the recipe failed or took too long.
        """
        shape = (len(self.source.labels), *self.predicted_shape)
        found = self.predict(recipe, self.source, start.digest, shape, seconds, predict=self.read_fold)
        if found is None:
            return None
        result = self.make_result(recipe, found)
        self.results.append(result)
        self.report_result(result)
        return result

    def open(self, found: Sequence[FoundStart]) -> list[MapStart]:
        """Measure the machine and the starts, and let all recipes see examples at the largest size that fits in.

        Args:
            found: Starts at hand.

        Returns:
            The starts that give maps, or the network with random weights where there are none.

        Raises:
            InputError: A start that the user named gives no maps.
        """
        self.busyness, self.read_seconds = measure_busyness(), self._measure_reading()
        starts = open_starts(found, self.source, self.prepare, self.plan.drop)
        self.random = MapStart("random weights", get_architecture(self.source.modality.solve.pretrained))
        for start in [*starts, self.random]:
            self.measure_speed(start)
        self._first_side = self.source.data.input_spec.shape[-1]
        self._choose_size(starts or [self.random])
        written = self.source.pool_size * (self.read_seconds + self.busyness * self.write_seconds)
        self.plan.reserved = self.busyness * DELIVERY_SECONDS + written
        return starts

    def _measure_reading(self) -> float:
        """Measure the seconds to read an example with its annotation."""
        count = min(_READ, len(self.source.labels))
        begin = time.perf_counter()
        self.source.data.inputs_of("labeled", [*range(count)])
        return (time.perf_counter() - begin) / count

    def scale(self, side: int) -> float:
        """Return how much longer a pass takes at a side than at the one at which it was measured.

        Args:
            side: Side of the examples in pixels.
        """
        return (side / self._first_side) ** 2

    @property
    def own_scale(self) -> float:
        """How much longer a pass takes at the chosen size than at the one at which it was measured."""
        return self.scale(self.source.data.input_spec.shape[-1])

    def _choose_size(self, starts: Sequence[MapStart]) -> None:
        """Let all recipes see examples at the largest size at which what is to fit in does."""
        if self.source.given_size is not None or "image_size" not in self.source.settings:
            return

        def decide() -> Stage:
            largest = find_largest_side([self.source.data.splits["labeled"]])
            # Others only blur them.
            sides = [side for k, side in enumerate(self.sizes) if k == 0 or self.sizes[k - 1] < largest]
            fitting = (one for one in sides if self.predict_least(starts, one) <= self._get_time())
            side = max(fitting, default=self.sizes[0])
            return Stage("size", "", self.predict_least(starts, side), {"image_size": side})

        side = self.plan.decide("size", decide).settings["image_size"]
        self.report(f"size:     {side} {self.source.modality.solve.unit} a side for all recipes")
        spec = self.source.data.input_spec
        self.source = self.source.view(replace(spec, shape=(spec.shape[0], side, side)))

    def _get_time(self) -> float:
        return TRAININGS_END * (self.plan.seconds - self.plan.reserved) - self.plan.elapsed

    def count_cost(self, step: float) -> Cost:
        """Return the cost of a training.

        Args:
            step: Seconds of a step.
        """
        return Cost(self.busyness * START_SECONDS, step)
