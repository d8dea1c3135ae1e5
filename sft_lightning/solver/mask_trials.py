"""Trials of recipes for examples with masks, all at one size: colors, frozen maps of each start, and trainings."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.vision.image_stats import find_largest_side
from sft_lightning.networks.encoder import get_architecture
from sft_lightning.networks.vision.backbones import BUILT_IN
from sft_lightning.networks.weights import find_weights
from sft_lightning.runs.lineage import hash_file
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.judged import JudgedRecipe, JudgedRecipes, halve
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.mask_recipes import BATCH, MAX_PIXELS, MaskStart, make_pixel_classifier, make_trainings
from sft_lightning.solver.plan import (
    DELIVERY_SECONDS,
    MIN_SECONDS,
    MIN_STEPS_OF_MANY,
    PATIENCE,
    START_SECONDS,
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
from sft_lightning.solver.speed import measure_seconds
from sft_lightning.solver.starts import has_seen
from sft_lightning.study.folds import score_examples
from sft_lightning.utils.errors import InputError

SIZES = (64, 96, 128, 192, 256)  # pixels: sides at which all recipes see the examples
_TRAININGS = "trainings"
_READ = 8  # examples by which the time of reading is measured
_PASSES = 2  # over the labeled examples, of logistic regression
_WRITE_SECONDS = 0.03  # of a predicted mask and its overlay, about
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


class MaskTrials(JudgedRecipes[JudgedRecipe]):
    """Recipes for masks that were tried, and their results."""

    def compare(self, found: Sequence[FoundStart]) -> None:
        """Judge recipes as far as the time allows it: one on colors always, then each start, then trainings.

        Args:
            found: Starts at hand.

        Raises:
            InputError: A start that the user named gives no maps, or nothing can be learned from the masks.
        """
        self.read_seconds = self._measure_reading()
        starts = self._open_starts(found)
        random = MaskStart("random weights", get_architecture(self.source.modality.solve.pretrained))
        self.speeds = {start.name: self._measure(start) for start in [*starts, random]}
        self._first_side = self.source.data.input_spec.shape[-1]
        self._choose_size(starts or [random])
        self.plan.reserved = DELIVERY_SECONDS + self.source.pool_size * (self.read_seconds + _WRITE_SECONDS)
        colors = MaskStart(self.source.data.views.inputs_name, self.source.modality.solve.plain)
        if self.judge(make_pixel_classifier(colors), colors) is None:
            raise InputError(self.failed[0])
        for start in starts:
            stage = self.plan.decide(start.name, partial(self._decide_start, start, len(starts)))
            if self.announce(stage):
                self.judge(make_pixel_classifier(start), start)
        self._judge_trainings(self._rank(starts) or [random])

    # --- starts and size

    def _measure_reading(self) -> float:
        """Measure the seconds to read an example with its mask."""
        count = min(_READ, len(self.source.labels))
        begin = time.perf_counter()
        self.source.data.inputs_of("labeled", [*range(count)])
        return (time.perf_counter() - begin) / count

    def _open_starts(self, found: Sequence[FoundStart]) -> list[MaskStart]:
        """Return the starts that give maps."""
        starts = []
        for one in found:
            candidate = one.candidate
            try:
                if candidate.image_size is not None:
                    raise InputError(
                        "it has a size of its own, and masks are compared at one size: set image_size of the call"
                    )
                start = MaskStart(str(candidate), "", candidate)
                with silence_logs():
                    network = start.load(self.source)
                    network.add_decoder({})
            except InputError as error:
                if one.is_given:
                    raise InputError(f"candidate {str(candidate)!r}: {error}") from error
                self.plan.drop(str(candidate), f"{candidate}: {error}")
                continue
            has_file = candidate.weights not in ("none", "default")
            digest = hash_file(find_weights(Path(candidate.weights))) if has_file else ""
            seen, is_large = has_seen(candidate.weights, self.source), network.architecture not in BUILT_IN
            starts.append(MaskStart(str(candidate), network.name, candidate, seen, digest, is_large))
        return starts

    def _measure(self, start: MaskStart) -> Speed:
        with silence_logs():
            network = start.load(self.source)
            network.stack_maps()
            frozen = measure_seconds(network, learns=False)
            learner = start.load(self.source)
            learner.add_decoder({})
        return Speed(frozen, measure_seconds(learner, learns=True), network.num_features)

    def _scale(self, side: int) -> float:
        """Return how much longer a pass takes at a side than at the one at which it was measured."""
        return (side / self._first_side) ** 2

    @property
    def _own_scale(self) -> float:
        return self._scale(self.source.data.input_spec.shape[-1])

    def _choose_size(self, starts: Sequence[MaskStart]) -> None:
        """Let all recipes see examples at the largest size at which starts and one training of 180 steps fit in."""
        if not self._may_grow:
            return

        def decide() -> Stage:
            largest = find_largest_side([self.source.data.splits["labeled"]])
            sides = [side for k, side in enumerate(SIZES) if k == 0 or SIZES[k - 1] < largest]  # others only blur them
            side = max((one for one in sides if self._predict_least(starts, one) <= self._get_time()), default=SIZES[0])
            return Stage("size", "", self._predict_least(starts, side), {"image_size": side})

        side = self.plan.decide("size", decide).settings["image_size"]
        self.report(f"size:     {side} {self.source.modality.solve.unit} a side for all recipes")
        spec = self.source.data.input_spec
        self.source = self.source.view(replace(spec, shape=(spec.shape[0], side, side)))

    @property
    def _may_grow(self) -> bool:
        return self.source.given_size is None and "image_size" in self.source.settings

    def _get_time(self) -> float:
        return TRAININGS_END * (self.plan.seconds - self.plan.reserved) - self.plan.elapsed

    def _predict_least(self, starts: Sequence[MaskStart], side: int) -> float:
        """Predict the seconds of the frozen maps of all starts, and of the cheapest comparison of trainings."""
        scale = self._scale(side)
        frozen = sum(self._predict_frozen(start, scale) for start in starts)
        cost = self._predict_cost(starts[0], BATCH, scale)
        return frozen + predict_halving([cost], MIN_STEPS_OF_MANY, self.source.num_folds, 1)

    def _predict_frozen(self, start: MaskStart, scale: float) -> float:
        """Predict the seconds of logistic regression on a start in all folds."""
        speed, count = self.speeds[start.name], len(self.source.labels)
        fits = self.source.num_folds * len(self.source.divisions) * predict_fit(speed.features, self.source)
        return _PASSES * count * (scale * speed.frozen + self.read_seconds) + fits

    def _predict_cost(self, start: MaskStart, batch: int, scale: float) -> Cost:
        each = scale * STEP_OVERHEAD * self.speeds[start.name].learns + self.read_seconds
        return Cost(START_SECONDS, batch * each)

    def _decide_start(self, start: MaskStart, num_starts: int) -> Stage:
        seconds, share = self._predict_frozen(start, self._own_scale), STARTS_SHARE / num_starts
        what = f"logistic regression on {start.name}"
        fits = seconds <= max(MIN_SECONDS, share * self.plan.seconds)
        needed = f"{what}: it takes --minutes {self.plan.count_minutes(seconds, share)}"
        return Stage(start.name, what, seconds, dropped="" if fits else needed)

    # --- judging

    def judge(self, recipe: Recipe, start: MaskStart, seconds: float = math.inf) -> JudgedRecipe | None:
        """Cross-fit a recipe, as far as an earlier call has not done so, and keep its result.

        Args:
            recipe: Recipe.
            start: Network that it starts from.
            seconds: Time for it.

        Returns:
            The result, or None where the recipe failed or took too long.
        """
        shape = (len(self.source.labels),)
        found = self.predict(recipe, self.source, start.digest, shape, seconds, predict=_score_fold)
        if found is None:
            return None
        scores, estimate = self.estimate(found[:, torch.from_numpy(self.judged)].double().numpy())
        result = JudgedRecipe(recipe, self.source, scores, estimate)
        self.results.append(result)
        self.report_result(result)
        return result

    def _rank(self, starts: Sequence[MaskStart]) -> list[MaskStart]:
        """Return the starts, that of the best frozen maps first, those that were not judged last."""
        scores = {result.recipe.name: float(result.scores.mean()) for result in self.results}
        return sorted(starts, key=lambda start: -scores.get(make_pixel_classifier(start).name, -1.0))

    def _judge_trainings(self, ranked: Sequence[MaskStart]) -> None:
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

        def make(start: MaskStart, kind: int, count: int) -> Recipe:
            return make_trainings(start, self.source, count)[kind]

        def judge(i: int, count: int) -> JudgedRecipe | None:
            return self.judge(make(*chosen[i], count), chosen[i][0], end - time.monotonic())

        halve(self.plan, [partial(make, *one) for one in chosen], steps, judge)

    def _decide_trainings(self, trainings: Sequence[tuple[MaskStart, int]]) -> Stage:
        folds, final = self.source.num_folds, 2 if self.source.has_test else 1
        costs, predicting = self._predict_costs(trainings)
        count, steps = plan_halving(self.plan.count_left(TRAININGS_END) - predicting, costs, folds, final)
        if not count:
            return Stage(_TRAININGS, dropped=self._explain_left_out(trainings, 0))
        what = f"{count} training(s) of up to {steps} steps in {folds} folds, and on all masks"
        seconds = predict_halving(costs[:count], steps, folds, final)
        last = seconds - predict_halving(costs[:count], steps, folds, 0) + predicting
        return Stage(_TRAININGS, what, seconds + predicting, {"count": count, "steps": steps, "final": round(last)})

    def _predict_costs(self, trainings: Sequence[tuple[MaskStart, int]]) -> tuple[list[Cost], float]:
        """Predict the cost of each training, and the seconds of the predictions of all unlabeled and test examples."""
        scale, source = self._own_scale, self.source
        costs = [
            self._predict_cost(start, make_trainings(start, source, 1)[kind].batch, scale) for start, kind in trainings
        ]
        predicted = source.pool_size + len(source.data.splits["test"])
        return costs, predicted * scale * max(self.speeds[start.name].frozen for start, _ in trainings)

    def _explain_left_out(self, trainings: Sequence[tuple[MaskStart, int]], position: int) -> str:
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


def _score_fold(cli: SFTCLI) -> torch.Tensor:
    """Return the scores of the fold that a training holds out, (K,)."""
    return score_examples(cli.model, cli.datamodule, cli.model.task, "test")
