"""Trials of recipes for examples with masks, all at one size: colors, frozen maps of each start, and trainings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.cli.logging import silence_logs
from sft_lightning.networks.encoder import Encoder
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.judged import halve
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.map_starts import MapStart
from sft_lightning.solver.map_trials import MapTrials
from sft_lightning.solver.mask_recipes import BATCH, MAX_PIXELS, make_pixel_classifier, make_trainings
from sft_lightning.solver.plan import (
    MIN_SECONDS,
    MIN_STEPS_OF_MANY,
    PATIENCE,
    STARTS_SHARE,
    STEP_OVERHEAD,
    TRAINING_STEPS,
    TRAININGS_END,
    Cost,
    Stage,
    plan_halving,
    predict_halving,
)
from sft_lightning.solver.recipes import Recipe
from sft_lightning.solver.scored import ScoredRecipe, ScoredRecipes
from sft_lightning.solver.speed import measure_seconds
from sft_lightning.study.folds import score_examples
from sft_lightning.utils.errors import InputError

_TRAININGS = "trainings"
_PASSES = 2  # over the labeled examples, of logistic regression
_PROBED, _ITERATIONS = 1_000, 150  # pixels of a measurement, and iterations of logistic regression, about


@dataclass(frozen=True)
class Speed:
    """Measured seconds for one example at the first size.

    Attributes:
        frozen: Seconds of a pass.
        learns: Seconds of a pass with gradients, encoder and decoder.
        features: Number of features of a pixel.
    """

    frozen: float
    learns: float
    features: int


class MaskTrials(MapTrials[ScoredRecipe], ScoredRecipes[ScoredRecipe]):
    """Recipes for masks that were tried, and their results."""

    sizes: ClassVar[tuple[int, ...]] = (64, 96, 128, 192, 256)
    write_seconds: ClassVar[float] = 0.03  # of a mask and its overlay
    predicted_shape: ClassVar[tuple[int, ...]] = ()

    def compare(self, found: Sequence[FoundStart]) -> None:
        """Judge recipes as far as the time allows it: one on colors always, then each start, then trainings.

        Args:
            found: Starts at hand.

        Raises:
            InputError: A start that the user named gives no maps, or nothing can be learned from the masks.
        """
        self.speeds: dict[str, Speed] = {}
        starts = self.open(found)
        colors = MapStart(self.source.data.views.inputs_name, self.source.modality.solve.plain)
        if self.judge(make_pixel_classifier(colors), colors) is None:
            raise InputError(self.failed[0])
        for start in starts:
            stage = self.plan.decide(start.name, partial(self._decide_start, start, len(starts)))
            if self.announce(stage):
                self.judge(make_pixel_classifier(start), start)
        self._judge_trainings(self._rank(starts) or [self.random])

    # --- speed

    def prepare(self, network: Encoder) -> None:
        """Add the decoder."""
        network.add_decoder({})

    def measure_speed(self, start: MapStart) -> None:
        """Measure how long a network takes at the first size, frozen and with its decoder."""
        with silence_logs():
            network = start.load(self.source)
            network.stack_maps()
            frozen = measure_seconds(network, learns=False)
            learner = start.load(self.source)
            learner.add_decoder({})
        learns = measure_seconds(learner, learns=True)
        self.speeds[start.name] = Speed(frozen, learns, network.num_features)

    def predict_least(self, starts: Sequence[MapStart], side: int) -> float:
        """Predict the seconds of the frozen maps of all starts, and of the cheapest comparison of trainings."""
        scale = self.scale(side)
        frozen = sum(self._predict_frozen(start, scale) for start in starts)
        cost = self._predict_cost(starts[0], BATCH, scale)
        return frozen + predict_halving([cost], MIN_STEPS_OF_MANY, self.source.num_folds, 1)

    def _predict_frozen(self, start: MapStart, scale: float) -> float:
        """Predict the seconds of logistic regression on a start in all folds."""
        speed, count = self.speeds[start.name], len(self.source.labels)
        fits = self.source.num_folds * len(self.source.divisions) * predict_fit(speed.features, self.source)
        return _PASSES * count * (scale * speed.frozen + self.read_seconds) + fits

    def _predict_cost(self, start: MapStart, batch: int, scale: float) -> Cost:
        each = scale * STEP_OVERHEAD * self.speeds[start.name].learns + self.read_seconds
        return self.count_cost(batch * each)

    def _decide_start(self, start: MapStart, num_starts: int) -> Stage:
        seconds, share = self._predict_frozen(start, self.own_scale), STARTS_SHARE / num_starts
        what = f"logistic regression on {start.name}"
        fits = seconds <= max(MIN_SECONDS, share * self.plan.seconds)
        needed = f"{what}: it takes --minutes {self.plan.count_minutes(seconds, share)}"
        return Stage(start.name, what, seconds, dropped="" if fits else needed)

    # --- judging

    def read_fold(self, cli: SFTCLI) -> torch.Tensor:
        """Return the scores of the fold that a training holds out, (K,)."""
        return score_examples(cli.model, cli.datamodule, cli.model.task, "test")

    def make_result(self, recipe: Recipe, found: torch.Tensor) -> ScoredRecipe:
        """Return the result of a recipe, from the scores of the labeled examples, (R, N)."""
        scores, estimate = self.estimate(found[:, torch.from_numpy(self.judged)].double().numpy())
        return ScoredRecipe(recipe, self.source, estimate, scores)

    def _rank(self, starts: Sequence[MapStart]) -> list[MapStart]:
        """Return the starts, that of the best frozen maps first, those that were not judged last."""
        scores = {result.recipe.name: float(result.scores.mean()) for result in self.results}
        return sorted(starts, key=lambda start: -scores.get(make_pixel_classifier(start).name, -1.0))

    def _judge_trainings(self, ranked: Sequence[MapStart]) -> None:
        """Judge both trainings from the best start and fine-tuning from the second, as far as the time allows it."""
        kinds = range(len(make_trainings(ranked[0], self.source, 1)))
        trainings = [(ranked[0], kind) for kind in kinds] + [(start, 0) for start in ranked[1:2]]
        for start in ranked[2:]:
            better = f"{ranked[0].name} and {ranked[1].name} give better maps"
            self.plan.drop(f"trainings from {start.name}", f"trainings from {start.name}: {better}")
        stage = self.plan.decide(_TRAININGS, lambda: self._decide_trainings(trainings))
        for i in range(max(1, stage.settings.get("count", 0)), len(trainings)):
            sentence = self._explain_left_out(trainings, i)
            self.announce(self.plan.drop(sentence.partition(":")[0], sentence))
        if not self.announce(stage):
            return
        final, steps = stage.settings.get("final", 0), stage.settings["steps"]
        left = max(stage.seconds - final, min(PATIENCE * stage.seconds, self.plan.count_left(1.0)) - final)
        end = time.monotonic() + left
        chosen = trainings[: stage.settings["count"]]

        def make(start: MapStart, kind: int, count: int) -> Recipe:
            return make_trainings(start, self.source, count)[kind]

        def judge(i: int, count: int) -> ScoredRecipe | None:
            return self.judge(make(*chosen[i], count), chosen[i][0], end - time.monotonic())

        halve(self.plan, [partial(make, *one) for one in chosen], steps, judge)

    def _decide_trainings(self, trainings: Sequence[tuple[MapStart, int]]) -> Stage:
        folds, final = self.source.num_folds, 2 if self.source.has_test else 1
        costs, predicting = self._predict_costs(trainings)
        count, steps = plan_halving(self.plan.count_left(TRAININGS_END) - predicting, costs, folds, final)
        if not count:
            return Stage(_TRAININGS, dropped=self._explain_left_out(trainings, 0))
        what = f"{count} training(s) of up to {steps} steps in {folds} folds, and on all masks"
        seconds = predict_halving(costs[:count], steps, folds, final)
        last = seconds - predict_halving(costs[:count], steps, folds, 0) + predicting
        return Stage(_TRAININGS, what, seconds + predicting, {"count": count, "steps": steps, "final": round(last)})

    def _predict_costs(self, trainings: Sequence[tuple[MapStart, int]]) -> tuple[list[Cost], float]:
        """Predict the cost of each training, and the seconds of the predictions of all unlabeled and test examples."""
        scale, source = self.own_scale, self.source
        costs = [
            self._predict_cost(start, make_trainings(start, source, 1)[kind].batch, scale) for start, kind in trainings
        ]
        predicted = source.pool_size + len(source.data.splits["test"])
        return costs, predicted * scale * max(self.speeds[start.name].frozen for start, _ in trainings)

    def _explain_left_out(self, trainings: Sequence[tuple[MapStart, int]], position: int) -> str:
        """Return how many minutes a training takes, beside those before it."""
        costs, predicting = self._predict_costs(trainings)
        final = 2 if self.source.has_test else 1
        least = MIN_STEPS_OF_MANY if position > 1 else TRAINING_STEPS[0]
        needed = predict_halving(costs[: position + 1], least, self.source.num_folds, final) + predicting
        start, kind = trainings[position]
        title = make_trainings(start, self.source, 1)[kind].name.rpartition(" (")[0]
        return f"{title}: it takes --minutes {self.plan.count_minutes(needed + self.plan.elapsed, TRAININGS_END)}"


def predict_fit(num_features: int, source: LabeledSource) -> float:
    """Predict the seconds of logistic regression of pixels, from a measured part of one iteration.

    Args:
        num_features: Number of features of a pixel.
        source: Source of the masks.
    """
    x = torch.rand(_PROBED, num_features, dtype=torch.float64)
    y = torch.rand(_PROBED, source.data.num_classes, dtype=torch.float64)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        x @ (x.T @ y)
        seconds.append(time.perf_counter() - begin)
    return min(seconds) * MAX_PIXELS / _PROBED * _ITERATIONS
