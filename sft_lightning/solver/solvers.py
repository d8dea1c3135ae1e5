"""The steps of one call of `solve`: look, plan, compare, choose, train and deliver, for each kind of annotation."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sft_lightning.data.copies import group_copies
from sft_lightning.detection.bootstrap import MatchRecords
from sft_lightning.detection.held_out_precision import measure_precision
from sft_lightning.solver.box_delivery import deliver_boxes, match_test
from sft_lightning.solver.box_trials import BoxResult, BoxTrials
from sft_lightning.solver.defects import DefectComparison, compare_with_detector
from sft_lightning.solver.deliver import Delivery, deliver, test
from sft_lightning.solver.find_starts import FoundStart, check_knowledge, fetch_default, find_starts
from sft_lightning.solver.judged import JudgedRecipe, JudgedRecipes
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.look import describe_source, describe_starts
from sft_lightning.solver.mask_delivery import deliver_masks
from sft_lightning.solver.mask_trials import MaskTrials
from sft_lightning.solver.page import render_solution
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.recipes import train
from sft_lightning.solver.scored import ScoredRecipe
from sft_lightning.solver.scoring import calibrate
from sft_lightning.solver.solution import Solution
from sft_lightning.solver.starts import Start
from sft_lightning.solver.trainings import judge_trainings
from sft_lightning.solver.trials import Trials
from sft_lightning.solver.verdict import format_estimate, format_verdict
from sft_lightning.study.folds import score_examples
from sft_lightning.study.judge import Comparison, compare_on_test
from sft_lightning.study.resampling import Draws
from sft_lightning.transfer.candidates import Candidate, load_candidate
from sft_lightning.utils.atomic import write_json, write_text


class Solver:
    """The steps of one call."""

    trials_class: type[JudgedRecipes[Any]] = Trials

    def __init__(self, source: LabeledSource, minutes: float, name: str, folder: Path, begin: float) -> None:
        self.source, self.begin, self.name, self.folder = source, begin, name, folder
        self.plan = Plan(folder / "plan.json", source.key, minutes, begin)
        self.starts: Sequence[Start] = ()
        self.trials: Any = self.trials_class(source, self.plan, name, folder, self.report)

    def report(self, text: str) -> None:
        """Print a line of progress with the seconds so far."""
        sys.stderr.write(f"[{time.monotonic() - self.begin:4.0f} s] {text}\n")

    def run(self, candidates: list[Candidate] | None, download: bool) -> Solution:
        """Look, plan, compare, choose, train and deliver."""
        for line in describe_source(self.source):
            self.report(line)
        best = self.compare(self.find_starts(candidates, download))
        self.report(f"Chosen: {best.recipe.name}; training it on all {len(self.source.labels)} {self.source.counted}.")
        return self.conclude(best, self.deliver(best, f"solve/{self.name}/model"))

    def compare(self, found: list[FoundStart]) -> Any:
        """Plan and judge recipes, and return the best result.

        Args:
            found: Starts at hand.
        """
        trials = self.trials
        trials.judge_pixels()
        starts = self.starts = trials.plan_starts(found)
        pretraining = trials.plan_pretraining(len(starts))
        trials.plan_delivery()
        self.show_plan()
        for start in starts:
            trials.judge_start(start)
        trials.judge_pretrained(pretraining)
        trials.judge_continued()
        trials.weigh_labels()
        judge_trainings(trials)
        return trials.results[trials.choose()]

    def deliver(self, best: Any, name: str) -> Delivery:
        """Train the best recipe on all labels, and write the files.

        Args:
            best: Best result.
            name: Name of the run below `lightning_logs`.
        """
        return deliver(best.recipe, best.probabilities, best.source, best.space, name, self.folder)

    def score_test(self, result: Any, model: Any) -> Any:
        """Return the scores of the source's own test split, (T,).

        Args:
            result: Result of the recipe.
            model: Model that was trained by it.
        """
        return test(model, result.source, calibrate(result.probabilities, result.source))

    def average_test(self, scores: Any) -> float:
        """Return the score of the source's own test split.

        Args:
            scores: What `score_test` gives.
        """
        return float(scores.double().mean())

    def compare_scores(self, ours: Any, theirs: Any) -> Comparison:
        """Compare two models on the source's own test split.

        Args:
            ours: What `score_test` gives of the first.
            theirs: The same of the second.
        """
        return compare_on_test(ours.numpy(), theirs.numpy())

    def compare_defects(self, best: Any) -> DefectComparison | None:
        """Compare the best recipe with a detector of defects, where one class is named like normal examples.

        Args:
            best: Best result.
        """
        return compare_with_detector(self.source, best.probabilities[0], self.starts, self.plan.seconds)

    def find_starts(self, candidates: list[Candidate] | None, download: bool) -> list[FoundStart]:
        """Return the starts that the user named, or those at hand, and print them."""
        if candidates is None:
            found = find_starts(self.source, self.folder)
            if download and not found and self.source.modality.solve.has_sides:
                found = [fetch_default()]
        else:
            found = [FoundStart(one, "as you asked", is_given=True) for one in candidates]
            for note in filter(None, (check_knowledge(one, self.source) for one in candidates)):
                self.report(f"note:     {note}")
            for one in candidates:  # fetched and built once, so that none is refused after minutes
                takes_maps = self.source.data.target in ("mask", "boxes")
                load_candidate(one, self.source.data.input_spec, self.source.given_size, takes_maps)
        for line in describe_starts(found, candidates is None, self.source.modality):
            self.report(line)
        return found

    def show_plan(self) -> None:
        """Print what is planned so far; trainings follow from what is left of the time."""
        for stage in self.plan.stages:
            self.trials.announce(stage)

    # --- the end

    def compare_on_test(
        self, best: JudgedRecipe, with_pool: JudgedRecipe, reference: JudgedRecipe, delivery: Delivery
    ) -> Comparison:
        """Compare the best recipes with and without the unlabeled examples on the source's own test split."""
        scores: dict[str, Any] = {best.recipe.name: delivery.test_scores}
        for result in (with_pool, reference):
            if result.recipe.name not in scores:
                self.report(
                    f"Training {result.recipe.name} on all {self.source.counted}, to compare on the test examples."
                )
                cli = train(result.recipe, result.source, None, f"solve/{self.name}/compared")
                scores[result.recipe.name] = self.score_test(result, cli.model)
        return self.compare_scores(scores[with_pool.recipe.name], scores[reference.recipe.name])

    def conclude(self, best: JudgedRecipe, delivery: Delivery) -> Solution:
        """Judge, and write the summary and the page."""
        trials = self.trials
        chosen = trials.estimate_choice()
        labels_only = [i for i, result in enumerate(trials.results) if not result.recipe.uses_unlabeled]
        with_pool = [i for i, result in enumerate(trials.results) if result.recipe.uses_unlabeled]
        comparison = None
        if with_pool and labels_only:
            comparison = trials.compare_choices(with_pool, labels_only)
        reference = trials.results[trials.choose(labels_only)] if labels_only else best
        if comparison is not None and delivery.test_scores is not None:
            comparison = self.compare_on_test(best, trials.results[trials.choose(with_pool)], reference, delivery)
        held = delivery.test_scores
        reached = None if held is None else self.average_test(held)
        verdict = format_verdict(
            best.recipe.name, len(trials.results), self.source, chosen, comparison, reference.recipe.name, delivery,
            trials.caveat, is_ahead=best.estimate.mean >= max(result.estimate.mean for result in trials.results),
            method=trials.method, test=None if reached is None else (len(self.source.data.splits["test"]), reached),
        )  # fmt: skip
        defects = self.compare_defects(best)
        if defects is not None:
            verdict.insert(len(verdict) - len(delivery.advice), str(defects))
        rows = [
            [r.recipe.name, "yes" if r.recipe.uses_unlabeled else "no", format_estimate(r.estimate)]
            for r in sorted(trials.results, key=lambda r: -r.estimate.mean)
        ]
        key, metric = self.source.measure.key, self.source.measure.title
        summary: dict[str, Any] = {
            "verdict": verdict,
            "recipe": best.recipe.name,
            "metric": metric,
            "target": self.source.data.target,
            "label_settings": {k: v for k, v in self.source.settings.items() if k.startswith("label_")},
            key: [chosen.mean, chosen.low, chosen.high],
            f"test_{key}": reached,
            "unjudged": self.source.unjudged,
            "unlabeled": None if comparison is None else comparison.verdict,
            "defects": None if defects is None else defects._asdict(),
            "recipes": {r.recipe.name: r.estimate.mean for r in trials.results},
            "left_out": [*self.plan.dropped],
            "failed": trials.failed,
            "run": str(delivery.run),
            "modality": self.source.modality.name,
            "temperature": delivery.calibration.value,
            "score_threshold": delivery.score_threshold or None,
            "not_exported": delivery.not_exported,
            "seconds": round(time.monotonic() - self.begin, 1),
        }
        page = render_solution(
            self.name, verdict, rows, [*self.plan.dropped, *trials.failed], delivery, self.source.data, metric
        )
        write_text(self.folder / "report.html", page)
        write_json(self.folder / "summary.json", summary)  # last, since it says that all is there
        return Solution(self.folder, verdict, rows, delivery.run, summary)


class MapSolver(Solver):
    """The steps of one call for examples with annotations in places of them."""

    def compare(self, found: list[FoundStart]) -> JudgedRecipe:
        """Plan and judge recipes, and return the best result."""
        trials = self.trials
        trials.compare(found)
        best: JudgedRecipe = trials.results[trials.choose()]
        return best

    def compare_defects(self, best: JudgedRecipe) -> None:
        """Return None, since the examples have annotations in place of one class each."""


class MaskSolver(MapSolver):
    """The steps of one call for examples with masks."""

    trials_class = MaskTrials

    def deliver(self, best: ScoredRecipe, name: str) -> Delivery:
        """Train the best recipe on all masks, and write the files."""
        return deliver_masks(best, self.trials.judged, name, self.folder)

    def score_test(self, result: JudgedRecipe, model: Any) -> Tensor:
        """Return the scores of the source's own test split, (T,)."""
        return score_examples(model, result.source.data, result.source.task, "test")


class BoxSolver(MapSolver):
    """The steps of one call for examples with boxes of objects."""

    trials_class = BoxTrials

    def deliver(self, best: BoxResult, name: str) -> Delivery:
        """Train the best recipe on all boxes, and write the files."""
        return deliver_boxes(best, self.trials.judged, name, self.folder)

    def score_test(self, result: JudgedRecipe, model: Any) -> MatchRecords:
        """Return the matched detections of the source's own test split."""
        return match_test(model, result.source)

    def average_test(self, scores: MatchRecords) -> float:
        """Return the mean average precision of the source's own test split."""
        return float(self._measure_test(scores, np.ones((1, len(scores.objects))))[0])

    def compare_scores(self, ours: MatchRecords, theirs: MatchRecords) -> Comparison:
        """Compare two models on draws of the source's own test split."""
        groups = group_copies(self.source.data.splits["test"])
        draws = Draws(len(ours.objects), groups, 1.0, self.source.data.request.seed)
        return draws.compare(*(self._measure_test(one, draws.weights) for one in (ours, theirs)))

    def _measure_test(self, scores: MatchRecords, weights: np.ndarray) -> np.ndarray:
        return measure_precision(scores, weights, range(self.source.data.num_classes))
