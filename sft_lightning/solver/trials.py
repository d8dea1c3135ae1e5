"""Trials of recipes that take no training of their own: pixels, features of each start, and of pre-training."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.solver.class_shares import predict_shares
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.plan import (
    CONTINUED_SHARE,
    DELIVERY_SECONDS,
    MIN_POOL,
    MIN_SECONDS,
    PATIENCE,
    PIXELS_SHARE,
    PRETRAINING_END,
    PRETRAINING_SHARE,
    PRETRAINING_STEPS,
    STARTS_SHARE,
    STEP_OVERHEAD,
    TRAININGS_END,
    Plan,
    Stage,
    choose_steps,
    format_seconds,
)
from sft_lightning.solver.pretraining import count_batch, pretrain
from sft_lightning.solver.recipes import Recipe, make_classifiers
from sft_lightning.solver.scored import ScoredRecipe, ScoredRecipes
from sft_lightning.solver.scoring import score_held_out
from sft_lightning.solver.space import MAX_GRAPH, Space
from sft_lightning.solver.speed import measure_seconds, predict_graph
from sft_lightning.solver.starts import Start, load_start
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.utils.errors import InputError

_MIN_WORK = 0.2  # seconds that are enough to measure how busy the machine is


@dataclass
class Result(ScoredRecipe):
    """Result of a recipe that gives each example probabilities.

    Attributes:
        space: Vectors of the start that it learns from.
        probabilities: Probabilities of each labeled example without its fold, (R, N, C), or (1, N, C) of trainings; NaN
            for one in no fold.
    """

    space: Space
    probabilities: Tensor


class Trials(ScoredRecipes[Result]):
    """Recipes that were tried, and their results.

    Attributes:
        count: Number of examples of a graph.
        read_seconds: Measured seconds to read an example.
        graph_seconds: Measured seconds of the features and the classifiers of each space, by name.
    """

    def __init__(
        self, source: LabeledSource, plan: Plan, name: str, folder: Path, report: Callable[[str], None]
    ) -> None:
        """Start without results.

        Args:
            source: Source of the labels.
            plan: Plan to follow.
            name: Name of the solution.
            folder: Folder of the solution.
            report: Function that gets lines of progress.
        """
        super().__init__(source, plan, name, folder, report)
        self.spec = source.data.input_spec
        self.count = min(MAX_GRAPH, len(source.labels) + source.pool_size)
        self.read_seconds, self.graph_seconds = 0.0, dict[str, float]()
        self._passes: dict[str, float] = {}  # seconds of delivery on each space
        self._full: dict[str, int] = {}  # seconds of the features of all examples, known or not
        held = len(source.data.splits["test"])
        # Passes of delivery over the examples of a graph, to predict those whose features are not known.
        known = source.pool_size if source.pool_size + len(source.labels) <= self.count else 0
        self.num_passes = (source.pool_size + held - known) / self.count
        # On inputs themselves, also to fit, with a test also what is compared.
        self._num_plain_passes = (2 if held else 1) + (source.pool_size + held) / self.count

    def plan_delivery(self) -> Stage:
        """Decide the time of what comes after the choice, as if it were the classifier that takes longest so far."""

        def decide() -> Stage:
            what = f"model on all labels, {self.source.pool_size:,} predictions, files and report"
            return Stage("delivery", what, self.plan.reserved)

        return self.plan.decide("delivery", decide)

    def _add_space(self, name: str, seconds: float, is_network: bool = True) -> None:
        """Keep how long a space takes, and reserve the time to deliver a model on it."""
        self.graph_seconds[name] = seconds
        passes = self.num_passes if is_network else self._num_plain_passes
        self._passes[name] = passes * max(seconds, self._full.get(name, 0))
        self.plan.reserved = self.busyness * DELIVERY_SECONDS + max(self._passes.values())

    def judge_pixels(self) -> None:
        """Judge the classifiers on pixels, and measure how long it takes to read an example."""
        choices, source = self.source.modality.solve, self.source
        space = Space(source.data.views.inputs_name, (f"--model.backbone={choices.plain}",), 64)
        if choices.plain_encoding:
            source = source.view(replace(self.spec, encoding=choices.plain_encoding))
            space.backbone, space.has_counts = build_encoder(choices.plain, source.data.input_spec)[0], True
        begin = time.monotonic()
        space.read(source)
        seconds = time.monotonic() - begin
        self.read_seconds = seconds / (len(space.labeled) + self.count)
        begin, work = time.monotonic(), time.process_time()
        for recipe in make_classifiers(space, source):
            if not recipe.name.startswith("label spreading"):
                self.judge(recipe, space)
                continue
            stage = self._decide_graph(recipe.name, space)
            if not stage.dropped:
                seconds += stage.seconds
                self.judge(recipe, space)
        work = time.process_time() - work
        if work > _MIN_WORK:  # nothing was computed where the results are those of an earlier call
            self.busyness = max(1.0, (time.monotonic() - begin) / work)
        self._add_space(space.name, seconds, is_network=False)

    def _decide_graph(self, name: str, space: Space) -> Stage:
        def decide() -> Stage:
            seconds = predict_graph(torch.cat([space.labeled, space.pool]))
            minutes = self.plan.count_minutes(seconds, PIXELS_SHARE)
            needed = f"{name}: it takes {format_seconds(seconds)}, --minutes {minutes}"
            fits = seconds <= max(MIN_SECONDS, PIXELS_SHARE * self.plan.seconds)
            return Stage(name, seconds=seconds, dropped="" if fits else needed)

        return self.plan.decide(name, decide)

    def plan_starts(self, found: Sequence[FoundStart]) -> list[Start]:
        """Choose the size of each start, and leave out those whose features take too long.

        Args:
            found: Starts at hand.

        Raises:
            InputError: A start that the user named cannot be loaded.
        """
        starts = list[Start]()
        for one in found:
            try:
                start = self._plan_start(one.candidate, len(found))
            except InputError as error:
                if one.is_given:
                    raise
                self.plan.drop(str(one.candidate), f"{one.candidate}: {error}")
                continue
            starts += [] if start is None else [start]
        return starts

    def _plan_start(self, candidate: Candidate, num_starts: int) -> Start | None:
        share, reading = STARTS_SHARE / num_starts, self.count * self.read_seconds
        # All starts, and delivery with one of them, must fit in.
        left = (self.plan.seconds - self.plan.elapsed) / (num_starts + self.num_passes)
        limit = min(max(MIN_SECONDS, share * self.plan.seconds), PRETRAINING_END * left)
        most = max(PATIENCE * limit, TRAININGS_END * left)  # a start is worth more than what would follow it
        loaded: Start | None = None

        def decide() -> Stage:
            nonlocal loaded
            loaded = load_start(candidate, self.source, limit - reading)
            needed, full = loaded.seconds / loaded.all_seconds, loaded.all_seconds + reading
            seconds, side = needed * full, loaded.backbone.input_spec.shape[-1]
            unit = self.source.modality.solve.unit
            what = f"features of {self.spec.count(self.count)} at {side} {unit} from {candidate}"
            minutes = self.plan.count_minutes(seconds, TRAININGS_END / (num_starts + self.num_passes))
            sentence = f"{what} take {format_seconds(seconds)}, --minutes {minutes}"
            settings = {"image_size": loaded.candidate.image_size or 0, "pass": round(full) if needed < 1 else 0}
            return Stage(str(candidate), what, seconds, settings, "" if seconds <= most else sentence)

        stage = self.plan.decide(str(candidate), decide)
        if stage.dropped:
            return None
        sized = replace(candidate, image_size=stage.settings["image_size"] or None)
        self._full[str(sized)] = stage.settings.get("pass", 0)
        self._add_space(str(sized), stage.seconds)
        start = loaded or load_start(sized, self.source, math.inf)
        return replace(start, takes_smaller=start.is_large and candidate.image_size is self.source.given_size is None)

    def plan_pretraining(self, num_starts: int) -> Stage:
        """Choose the steps of pre-training from scratch.

        Args:
            num_starts: Number of other starts, which need time, too.
        """
        name, pool = "self-supervised pre-training", self.source.pool_size

        def decide() -> Stage:
            if pool < MIN_POOL:
                few = f"{pool:,} unlabeled {self.spec.plural} are too few (at least {MIN_POOL})"
                return Stage(name, dropped=f"{name}: {few}")
            if not self.source.modality.solve.pretrained:
                return Stage(name, dropped=f"{name}: not for {self.spec.plural} yet")
            network, _ = build_encoder(self.source.modality.solve.pretrained, self.source.data.input_spec)
            share = CONTINUED_SHARE if num_starts else PRETRAINING_SHARE
            return self._decide_pretraining(name, network, False, share, sum(self.graph_seconds.values()))

        return self.plan.decide(name, decide)

    def _decide_pretraining(self, name: str, network: Encoder, is_large: bool, share: float, judging: float) -> Stage:
        batch = count_batch(self.source, is_large)
        step = batch * 2 * measure_seconds(network, learns=True) * STEP_OVERHEAD
        decoding = self.count * self.read_seconds  # once
        left = self.plan.count_left(PRETRAINING_END) - judging
        steps = choose_steps(PRETRAINING_STEPS, min(left, share * self.plan.seconds) - decoding, step)
        if not steps:
            minutes = self.plan.count_minutes(PRETRAINING_STEPS[0] * step + decoding, share)
            return Stage(name, dropped=f"{name}: it takes --minutes {minutes}")
        side = network.input_spec.shape[-1]
        what = f"{name} for {steps} steps of {self.spec.count(batch)} at {side} {self.source.modality.solve.unit}"
        return Stage(name, what, steps * step + decoding, {"steps": steps})

    def judge_start(self, start: Start) -> None:
        """Judge the classifiers on the features of a start.

        Args:
            start: Start at its size.
        """
        weights = start.candidate.weights
        argv = (f"--model.backbone={start.backbone.name}", f"--model.weights={weights}")
        shrinks = start.candidate if start.takes_smaller and self.source.modality.solve.has_sides else None
        known = start.saw_pool, start.is_large, start.digest, shrinks
        space = Space(str(start.candidate), argv, 128, start.backbone, *known)
        if name := self.source.modality.solve.second_view:
            space.second_view, _ = build_encoder(name, start.backbone.input_spec)
        self._judge_space(space)
        if start.backbone.misfits:
            self.report(f"  {start.candidate}: of another shape, so randomly initialized: {start.backbone.misfits[0]}")

    def judge_pretrained(self, stage: Stage) -> None:
        """Pre-train a network on the pool, and judge the classifiers on its features.

        Args:
            stage: Decision of `plan_pretraining`.
        """
        if not stage.dropped:
            run = self._pretrain(self.source, stage, "pretraining", None)
            name = f"features learned from your {self.spec.plural}"
            self._judge_run(run, self.source.modality.solve.pretrained, name, is_large=False)

    def judge_continued(self) -> None:
        """Go on with the self-supervision of the best start from a library, and judge what it gives."""
        spaces = [space for space in self.rank_spaces() if space.is_large]
        if not spaces or self.source.pool_size < MIN_POOL or not self.source.modality.solve.pretrained:
            return
        best = spaces[0]
        assert best.backbone is not None
        assert best.source is not None
        name, network = f"continued pre-training of {best.name}", best.backbone
        judging = self.graph_seconds[best.name]
        stage = self.plan.decide(name, lambda: self._decide_pretraining(name, network, True, CONTINUED_SHARE, judging))
        if self.announce(stage):
            run = self._pretrain(best.source, stage, "continued", best)
            self._judge_run(run, network.name, f"{best.name}, continued on your {self.spec.plural}", is_large=True)

    def _pretrain(self, source: LabeledSource, stage: Stage, kind: str, start: Space | None) -> Path:
        begin = time.monotonic()
        marker = self.folder / f"{kind}.json"
        run = pretrain(source, stage.settings["steps"], f"solve/{self.name}/{kind}", marker, start)
        self.report(f"Pre-trained on {self.spec.count(source.pool_size)} in {time.monotonic() - begin:.0f} s.")
        return run

    def _judge_run(self, run: Path, backbone: str, name: str, is_large: bool) -> None:
        candidate = Candidate(weights=str(run))
        start = load_start(candidate, self.source, math.inf, own_size=True)
        argv = (f"--model.backbone={backbone}", f"--model.weights={run}")
        self._judge_space(Space(name, argv, 128, start.backbone, True, is_large, start.digest))

    def _judge_space(self, space: Space) -> None:
        assert space.backbone is not None
        begin = time.monotonic()
        space.read(self.source.view(space.backbone.input_spec))
        for recipe in make_classifiers(space, self.source):
            self.judge(recipe, space)
        self._add_space(space.name, time.monotonic() - begin)

    def find_default(self, positions: Sequence[int]) -> int | None:
        """Return the place of the regression that learns from most, on the best start that has not seen the pool.

        That is co-trained regression where examples have a second view, or else a smoothed or a plain one.

        Over draws of few labels from eight sources, none of the other classifiers was so rarely far from the best
        (`scripts/bench/choice_rules.py`).
        """
        for kind in ("co-trained regression", "smoothed logistic regression", "logistic regression"):
            own = [place for place, i in enumerate(positions) if self._is_default(self.results[i], kind)]
            if own:
                return max(own, key=lambda place: self.results[positions[place]].estimate.mean)
        return None

    @staticmethod
    def _is_default(result: Result, kind: str) -> bool:
        return result.space.is_network and not result.space.saw_pool and result.recipe.name.startswith(f"{kind} on ")

    def weigh_labels(self) -> None:
        """Let labels count as much as their class is frequent among the unlabeled examples, where that differs.

        The classes of the latter are those that the best logistic regression so far predicts.
        """
        plain = [result for result in self.results if result.recipe.name.startswith("logistic regression")]
        best = max(plain, key=lambda result: result.estimate.mean)
        shares = predict_shares(best.space, self.source)
        if shares is None or not shares.is_uneven:
            return
        self.caveat = shares.describe(self.source)
        self.report(self.caveat)
        self.weights = shares.weigh(self.source.labels[torch.from_numpy(self.judged)])
        for result in self.results:
            _, result.estimate = self.estimate(result.scores)
            self.report_result(result)

    def rank_spaces(self) -> list[Space]:
        """Return the spaces of networks, that of the best classifier first."""
        best: dict[str, tuple[float, Space]] = {}
        for result in self.results:
            score = result.estimate.mean
            if result.space.is_network and score > best.get(result.space.name, (-1.0, result.space))[0]:
                best[result.space.name] = score, result.space
        return [space for _, space in sorted(best.values(), key=lambda pair: -pair[0])]

    def judge(self, recipe: Recipe, space: Space, seconds: float = math.inf) -> Result | None:
        """Cross-fit a recipe, as far as an earlier call has not done so, and keep its result.

        Args:
            recipe: Recipe.
            space: Vectors of the start that it learns from.
            seconds: Time for it.

        Returns:
            The result, or None where the recipe failed or took too long.
        """
        assert space.source is not None
        source = space.source
        shape = len(source.labels), source.data.num_classes
        probabilities = self.predict(recipe, source, space.digest, shape, seconds)
        if probabilities is None:
            return None
        scores, estimate = self.estimate(score_held_out(probabilities, source))
        result = Result(recipe, source, estimate, scores, space, probabilities)
        self.results.append(result)
        self.report_result(result)
        return result
