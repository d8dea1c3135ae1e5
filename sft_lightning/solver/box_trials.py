"""Trials of detectors, all at one size: from each start with labels alone, then Unbiased Teacher from the best."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.data.vision.detection_datamodule import DetectionDataModule
from sft_lightning.detection.bootstrap import MatchRecords
from sft_lightning.detection.build import build_detector
from sft_lightning.detection.held_out_precision import join_folds, match_examples, measure_precision, rank_scores
from sft_lightning.detection.metrics import MOST, check_extra
from sft_lightning.networks.encoder import Encoder
from sft_lightning.solver.box_recipes import (
    BATCH,
    DETECTORS,
    FIELDS,
    Speed,
    find_objects,
    make_detector,
    make_teacher,
    measure_detector,
)
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.judged import JudgedRecipe, halve
from sft_lightning.solver.map_starts import MapStart
from sft_lightning.solver.map_trials import MapTrials
from sft_lightning.solver.plan import PATIENCE, TRAININGS_END, Cost, Stage, predict_halving
from sft_lightning.solver.recipes import Recipe
from sft_lightning.study.intervals import Comparison, Estimate
from sft_lightning.study.judge import overlap_factor
from sft_lightning.study.resampling import Draws
from sft_lightning.utils.errors import InputError

STEPS = (90, 180, 300, 450, 700, 1000, 1500, 2200, 3000)  # optimizer steps, a third of them in the first round
_STARTS = 2  # starts that are compared, each with all kinds of detectors
_TRAININGS = "trainings"


@dataclass
class BoxResult(JudgedRecipe):
    """Result of a recipe for boxes.

    Attributes:
        found: Detections of each labeled example without its fold, (N, 100, 6), as `find_objects` gives them.
        matched: The same of the judged examples, matched with their objects.
        scores: Mean average precision of all judged examples, and of each draw, (1 + B,).
    """

    found: Tensor
    matched: MatchRecords
    scores: np.ndarray


class BoxTrials(MapTrials[BoxResult]):
    """Recipes for boxes that were tried, and their results.

    Attributes:
        draws: Draws of the judged examples, the same for all recipes.
        classes: Classes that are judged: those with objects in two examples, or groups, at least.
    """

    sizes: ClassVar[tuple[int, ...]] = (64, 96, 128, 192, 256, 384, 512)
    write_seconds: ClassVar[float] = 0.03  # of an example with its boxes
    predicted_shape: ClassVar[tuple[int, ...]] = (MOST, FIELDS)

    def __init__(self, *given: Any) -> None:
        """Draw the judged examples.

        Args:
            given: Arguments of `JudgedRecipes`.
        """
        super().__init__(*given)
        names, unjudged = self.source.data.class_names, {*self.source.unjudged, *self.source.unlabeled_classes}
        self.classes = [k for k, name in enumerate(names) if name not in unjudged]
        factor, seed = overlap_factor(self.source.divisions[:1]), self.source.data.request.seed
        self.draws = Draws(int(self.judged.sum()), self.groups, factor, seed)
        self.method = (
            f"The intervals and the choice rest on {self.draws.number} draws with replacement of the "
            f"{self.draws.count} {self.source.counted}, the same for all recipes."
        )
        self.speeds: dict[tuple[str, str], Speed] = {}

    def compare(self, found: Sequence[FoundStart]) -> None:
        """Judge detectors as far as the time allows it: of labels alone first, then the teacher of the best.

        Args:
            found: Starts at hand.

        Raises:
            InputError: A start that the user named gives no maps, or the time is too short for any detector.
        """
        check_extra()
        starts = self.open(found)
        for start in starts[_STARTS:]:
            ahead = " and ".join(one.name for one in starts[:_STARTS])
            self.plan.drop(start.name, f"detectors from {start.name}: {ahead} come first")
        chosen = starts[:_STARTS] or [self.random]
        self._measure_at_size(chosen)
        self._judge_trainings([(start, detector) for detector in DETECTORS for start in chosen])

    # --- speed

    def prepare(self, network: Encoder) -> None:
        """Build a detector."""
        build_detector(DETECTORS[0], network, self.source.data.num_classes)

    def measure_speed(self, start: MapStart) -> None:
        """Measure how long the quickest detector takes on a network at the first size."""
        self.speeds[start.name, DETECTORS[0]] = measure_detector(start, DETECTORS[0], self.source)

    def predict_least(self, starts: Sequence[MapStart], side: int) -> float:
        """Predict the seconds of the quickest detector of the first start, and of its teacher, with few steps."""
        scale = self.scale(side)
        costs = [self._predict_cost(starts[0], DETECTORS[0], learns, scale) for learns in self._kinds]
        return sum((self.source.num_folds + 1) * cost.of(STEPS[1]) for cost in costs)

    @property
    def _kinds(self) -> tuple[bool, ...]:
        """Whether unlabeled examples are learned from, for each kind of recipe."""
        return (False, True) if self.source.pool_size else (False,)

    def _measure_at_size(self, starts: Sequence[MapStart]) -> None:
        """Measure all detectors at the size that was chosen, by which trainings are planned."""
        for start in starts:
            for detector in DETECTORS:
                self.speeds[start.name, detector] = measure_detector(start, detector, self.source)

    def _predict_cost(self, start: MapStart, detector: str, learns_unlabeled: bool, scale: float = 1.0) -> Cost:
        read = BATCH * (2 if learns_unlabeled else 1) * self.read_seconds
        return self.count_cost(scale * self.speeds[start.name, detector].of_step(learns_unlabeled) + read)

    # --- judging

    def read_fold(self, cli: SFTCLI) -> Tensor:
        """Return the detections of the fold that a training holds out, (K, 100, 6)."""
        return find_objects(cli.model, cli.datamodule, "test")

    def make_result(self, recipe: Recipe, found: Tensor) -> BoxResult:
        """Return the result of a recipe, from its detections in a single division, (1, N, 100, 6)."""
        data = self.source.data
        assert isinstance(data, DetectionDataModule)
        own = found[0]
        positions, true = np.flatnonzero(self.judged).tolist(), data.objects_of("labeled")
        matched = match_examples(own[positions], [true[i] for i in positions], data.num_classes)
        scores = measure_precision(matched, self.draws.weights, self.classes)
        return BoxResult(recipe, self.source, self.draws.estimate(scores), own, matched, scores)

    def choose(self, among: Sequence[int] | None = None) -> int:
        """Return the position of the best result."""
        return self._choose(range(len(self.results)) if among is None else among)

    def find_default(self, positions: Sequence[int]) -> int | None:
        """Return the place of the best result of labels alone, which the teacher has to be ahead of."""
        return self._find_default(positions, None)

    def _find_default(self, positions: Sequence[int], left_out: int | None) -> int | None:
        plain = [place for place, i in enumerate(positions) if not self.results[i].recipe.uses_unlabeled]
        means = {place: self._score(positions[place], left_out)[0] for place in plain}
        return max(plain, key=lambda place: means[place], default=None)

    def _score(self, position: int, left_out: int | None, with_draws: bool = False) -> np.ndarray:
        """Return the score of a result without a fold, (1,), with draws (1 + B,)."""
        result = self.results[position]
        if left_out is None:
            return result.scores
        weights = self.draws.weights if with_draws else self.draws.weights[:1]
        return measure_precision(result.matched, weights * (self.folds[0] != left_out), self.classes)

    def _choose(self, positions: Sequence[int], left_out: int | None = None) -> int:
        """Return the position of the best result without a fold, or of the default unless the best is ahead of it."""
        means = {i: self._score(i, left_out)[0] for i in positions}
        best = max(positions, key=lambda i: means[i])
        place = self._find_default(positions, left_out)
        if place is None or positions[place] == best:
            return best
        default = positions[place]
        ours, theirs = (self._score(i, left_out, with_draws=True) for i in (best, default))
        return best if self.draws.is_ahead(ours, theirs) else default

    def score_choice(self, among: Sequence[int]) -> np.ndarray:
        """Return the score of choosing on other folds than those that the choice is scored on, of each draw, (1 + B,).

        Args:
            among: Positions to choose from.
        """
        chosen = [self._choose(among, fold) for fold in range(self.source.num_folds)]
        if len({*chosen}) == 1:
            return self.results[chosen[0]].scores
        ranked = [rank_scores(self.results[i].matched, self.folds[0]) for i in chosen]
        return measure_precision(join_folds(ranked, self.folds[0]), self.draws.weights, self.classes)

    def estimate_choice(self) -> Estimate:
        """Estimate the score of choosing among all results and training what is chosen on all labels."""
        return self.draws.estimate(self.score_choice(range(len(self.results))))

    def compare_choices(self, ours: Sequence[int], theirs: Sequence[int]) -> Comparison:
        """Compare choosing among some results with choosing among others, on the same draws."""
        return self.draws.compare(self.score_choice(ours), self.score_choice(theirs))

    # --- trainings

    def _judge_trainings(self, trainings: Sequence[tuple[MapStart, str]]) -> None:
        """Judge detectors of labels alone by successive halving, then the teacher of the best, with as many steps."""
        stage = self.plan.decide(_TRAININGS, lambda: self.decide(trainings))
        count, steps = stage.settings["count"], stage.settings["steps"]
        for start, detector in trainings[count:]:
            name = f"{detector} from {start.name}"
            minutes = self._count_minutes(trainings[: trainings.index((start, detector)) + 1])
            self.announce(self.plan.drop(name, f"{name}: it takes --minutes {minutes}"))
        self.announce(stage)
        final = stage.settings["final"]
        end = time.monotonic() + max(stage.seconds, min(PATIENCE * stage.seconds, self.plan.count_left(1.0))) - final
        chosen = trainings[:count]

        def judge(i: int, number: int) -> BoxResult | None:
            left = end - time.monotonic() if self.results else math.inf  # one has to give an answer
            return self.judge(make_detector(*chosen[i], number), chosen[i][0], left)

        halve(self.plan, [partial(make_detector, start, detector) for start, detector in chosen], steps, judge)
        if not self.results:
            raise InputError(self.failed[0])
        if not self.source.pool_size:
            return
        name = "Unbiased Teacher"
        if not stage.settings["teacher"]:
            minutes = self._count_minutes(trainings[:1])
            self.announce(self.plan.drop(name, f"{name}: it takes --minutes {minutes}"))
            return
        start, detector = self._find_best(chosen, steps)
        self.judge(make_teacher(start, detector, steps), start, end - time.monotonic())

    def _find_best(self, trainings: Sequence[tuple[MapStart, str]], steps: int) -> tuple[MapStart, str]:
        """Return the start and the kind of detector of the best result at a number of steps."""
        scores = {result.recipe.name: result.estimate.mean for result in self.results}
        return max(trainings, key=lambda one: scores.get(make_detector(one[0], one[1], steps).name, -1.0))

    def _predict_seconds(self, trainings: Sequence[tuple[MapStart, str]], steps: int, with_teacher: bool) -> float:
        """Predict the seconds of all folds, of the trainings on all labels, and of the predictions."""
        folds, final = self.source.num_folds, 2 if self.source.has_test else 1
        costs = [self._predict_cost(*one, False) for one in trainings]
        seconds = predict_halving(costs, steps, folds, 0)
        last = max(cost.of(steps) for cost in costs)
        if with_teacher:
            teacher = max(self._predict_cost(*one, True).of(steps) for one in trainings)
            seconds, last = seconds + folds * teacher, max(last, teacher)
        return seconds + final * last + self._predict_predictions(trainings)

    def _predict_predictions(self, trainings: Sequence[tuple[MapStart, str]]) -> float:
        predicted = self.source.pool_size + len(self.source.data.splits["test"])
        return predicted * max(self.speeds[start.name, detector].finds for start, detector in trainings)

    def _count_minutes(self, trainings: Sequence[tuple[MapStart, str]]) -> int:
        """Return the `--minutes` with which some trainings and the teacher fit in."""
        needed = self._predict_seconds(trainings, _find_least(len(trainings)), with_teacher=self.source.pool_size > 0)
        return self.plan.count_minutes(needed + self.plan.elapsed, TRAININGS_END)

    def decide(self, trainings: Sequence[tuple[MapStart, str]]) -> Stage:
        """Decide how many trainings of how many steps fit in: first one and its teacher, then more of them, then steps.

        Args:
            trainings: Start and kind of detector of each, the most promising first.

        Raises:
            InputError: Not even the quickest detector fits in with the fewest steps.
        """
        left = self.plan.count_left(TRAININGS_END)
        for with_teacher in dict.fromkeys((self.source.pool_size > 0, False)):
            for count in range(len(trainings), 0, -1):
                least = _find_least(count)
                fitting = [
                    steps
                    for steps in STEPS
                    if steps >= least and self._predict_seconds(trainings[:count], steps, with_teacher) <= left
                ]
                if fitting:
                    return self._plan_stage(trainings[:count], fitting[-1], with_teacher)
        start, detector = trainings[0]
        needed = self._predict_seconds(trainings[:1], STEPS[0], with_teacher=False)
        minutes = self.plan.count_minutes(needed + self.plan.elapsed, TRAININGS_END)
        raise InputError(
            f"minutes is {self.plan.minutes:g}, and the quickest comparison ({detector} from {start.name}, {STEPS[0]} "
            f"steps in {self.source.num_folds} folds) needs about {minutes}: give --minutes {minutes}"
        )

    def _plan_stage(self, trainings: Sequence[tuple[MapStart, str]], steps: int, with_teacher: bool) -> Stage:
        folds = self.source.num_folds
        teacher = " and Unbiased Teacher" if with_teacher else ""
        what = f"{len(trainings)} detector(s){teacher} of up to {steps} steps in {folds} folds, and on all labels"
        seconds = self._predict_seconds(trainings, steps, with_teacher)
        costs = [self._predict_cost(*one, kind).of(steps) for one in trainings for kind in (False, with_teacher)]
        final = (2 if self.source.has_test else 1) * max(costs) + self._predict_predictions(trainings)
        settings = {"count": len(trainings), "steps": steps, "teacher": int(with_teacher), "final": round(final)}
        return Stage(_TRAININGS, what, seconds, settings)


def _find_least(count: int) -> int:
    """Return the fewest steps of some detectors, of which several are compared at a third of them first."""
    return STEPS[1] if count > 1 else STEPS[0]
