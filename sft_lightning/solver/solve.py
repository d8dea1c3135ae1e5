"""`sft-lightning solve`: from a source with few labels to the best model, a verdict that holds, and the next labels."""

import hashlib
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.runs.lock import lock_folder
from sft_lightning.runs.paths import LOGS, check_run_name
from sft_lightning.solver.deliver import Delivery, deliver, test
from sft_lightning.solver.judge import (
    Comparison,
    Estimate,
    choose,
    compare,
    compare_on_test,
    estimate_accuracy,
    estimate_chosen,
    score_choice,
)
from sft_lightning.solver.labels import LabeledSource, describe_counts, read_source
from sft_lightning.solver.page import render_solution
from sft_lightning.solver.plan import BACKBONE, PRETRAINING_BATCH, Plan, make_plan, measure_step
from sft_lightning.solver.recipes import (
    PRETRAINED,
    Recipe,
    Space,
    cross_fit,
    fit,
    get_run,
    make_classifiers,
    make_trainings,
    train,
)
from sft_lightning.solver.solution import Solution
from sft_lightning.solver.verdict import format_estimate, format_verdict
from sft_lightning.transfer.candidates import load_candidate, resolve_candidates
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, StoppedBySignal, check_min, check_positive, describe_failure
from sft_lightning.utils.json_files import read_json


@dataclass
class Result:
    """Result of one recipe.

    Attributes:
        recipe: Recipe.
        probabilities: Probabilities of each labeled example without its fold, (N, C); NaN for one in no fold.
        correct: Whether each judged example is classified correctly, (1, J).
        accuracy: Accuracy with its interval.
    """

    recipe: Recipe
    probabilities: Tensor
    correct: np.ndarray
    accuracy: Estimate


def solve(
    source: str,
    minutes: float = 30.0,
    name: str | None = None,
    num_labels: int | None = None,
    candidates: list[str] | None = None,
    labels: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    root: str = "data",
) -> Solution:
    """Compare recipes on the labels, train the best one on all of them, and say what to label next.

    Recipes are compared by cross-fitting: each label is predicted by classifiers that have not seen its fold. Call it
    again with the same name to go on after a stop, after labeling, or with more minutes; what is known is not computed
    again.

    Args:
        source: Source of the images, as `data.init_args.source` takes it: a folder, a table, or the name of a data set.
        minutes: Time for the comparison, about; the final training comes on top, which takes less than a fold's share.
        name: Name of the solution, whose folder is `lightning_logs/solve/NAME`; null for that of the source.
        num_labels: Number of labels to use, to see what fewer would give; null for all.
        candidates: Starts to compare: names of backbones with published weights, weights files or runs.
        labels: A CSV of further labels with the columns id,label, as `sft-lightning label` writes it.
        image_size: Side of the images in pixels; null for that of the source, at most 64.
        seed: Seed of the folds and of the labels, if fewer than all are used.
        root: Folder that holds torchvision data sets.

    Returns:
        The solution with its model, verdict and files; as text, its summary.

    Raises:
        InputError: The source cannot be read, or has labels of fewer than two classes.
        StoppedBySignal: A signal stopped the work; the same call goes on.
    """
    check_positive(minutes=minutes)
    check_min(2, num_labels=num_labels)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).name).strip("._-") or "images"
    check_run_name("name", name)
    folder = Path(LOGS) / "solve" / name
    with lock_folder(folder, f"solution {name!r}"):
        try:
            opened = read_source(source, folder, num_labels, image_size, seed, root, labels)
            return _Solver(opened, minutes, name, candidates or [], folder).run()
        except (StoppedBySignal, KeyboardInterrupt) as error:
            number = error.signal if isinstance(error, StoppedBySignal) else signal.SIGINT
            stopped = signal.Signals(number).name
            raise StoppedBySignal(f"{stopped}: start solve again to go on; what is done is kept", number) from error


class _Solver:
    """The steps of one call."""

    def __init__(self, source: LabeledSource, minutes: float, name: str, candidates: list[str], folder: Path) -> None:
        self.begin, self.minutes, self.name, self.folder = time.monotonic(), minutes, name, folder
        self.source, self.candidates = source, candidates
        self.key = self.source.key()
        self.judged = torch.from_numpy(self.source.folds >= 0)
        self.results: list[Result] = []
        self.spaces: dict[str, Space] = {}
        self.failed: list[str] = []

    def report(self, text: str) -> None:
        """Print a line of progress with the seconds so far."""
        sys.stderr.write(f"[{time.monotonic() - self.begin:4.0f} s] {text}\n")

    def run(self) -> Solution:
        """Compare, choose, train and deliver."""
        self.describe_source()
        data = self.source.data
        pixels = Space(data.views.inputs_name, ("--model.backbone=pixels",), 64)
        self.judge_space(pixels)
        plan = self.plan()
        for given in self.candidates:
            self.judge_start(given, plan)
        if plan.pretraining_steps:
            self.judge_pretrained(plan)
        best = self.results[self.choose()]
        self.report(f"Chosen: {best.recipe.name}; training it on all {len(self.source.labels)} labels.")
        space = next(s for s in self.spaces.values() if best.recipe.name.endswith(s.name))
        delivery = deliver(best.recipe, best.probabilities, self.source, space, f"solve/{self.name}/model", self.folder)
        return self.conclude(plan, best, delivery)

    def describe_source(self) -> None:
        """Print what the source holds."""
        data = self.source.data
        held = f", {len(data.splits['test']):,} for a test" if self.source.has_test else ""
        shape = "x".join(map(str, data.input_spec.shape))
        self.report(
            f"{data.source.name}: {describe_counts(data.class_names, data.labeled_counts())}, "
            f"{self.source.pool_size:,} unlabeled{held}; {shape}."
        )
        alone = int((~self.judged).sum())
        if alone:
            self.report(f"{alone} label(s) are alone in their class and are learned from, but cannot judge.")

    def plan(self) -> Plan:
        """Measure a step, and print and save what fits into the minutes."""
        stored = self.folder / "plan.json"
        starts = sum(len(resolve_candidates(given)) for given in self.candidates)
        pass_seconds = measure_step(self.source.data.input_spec)
        plan = make_plan(self.minutes, self.source.pool_size, self.source.num_folds, starts, pass_seconds)
        if stored.is_file():
            known = read_json(stored, "remove it")
            if known.get("key") == self.key and known.get("minutes", 0) >= self.minutes:  # goes on with the same plan
                fields = {name: known[name] for name in ("minutes", "pretraining_steps", "training_steps")}
                plan = Plan(**fields, dropped=tuple(known["dropped"]))
        write_json(stored, {**plan.to_json(), "key": self.key})
        parts = [f"pre-training for {plan.pretraining_steps} steps"] if plan.pretraining_steps else []
        if plan.training_steps:
            parts.append(f"trainings of {plan.training_steps} steps in {self.source.num_folds} folds")
        if parts:
            self.report(f"Plan for {self.minutes:g} minutes: {', '.join(parts)}.")
        for sentence in plan.dropped:
            self.report(f"Left out: {sentence}.")
        return plan

    # --- candidates

    def judge_space(self, space: Space) -> None:
        """Judge the classifiers on a space."""
        space.read(self.source)
        self.spaces[space.name] = space
        for recipe in make_classifiers(space, self.source):
            self.judge(recipe)

    def judge_start(self, given: str, plan: Plan) -> None:
        """Judge the classifiers on the features of starts, and trainings from the best of them."""
        for candidate in resolve_candidates(given):
            backbone, _ = load_candidate(candidate, self.source.data.input_spec, self.source.data.given_size)
            if backbone.input_spec != self.source.data.input_spec:
                size = backbone.input_spec.shape[-1]
                raise InputError(
                    f"candidate {str(candidate)!r} takes inputs of shape {backbone.input_spec.shape}, and the source "
                    f"gives {self.source.data.input_spec.shape}: set --image_size {size}"
                )
            argv = (f"--model.backbone={backbone.name}", f"--model.weights={candidate.weights}")
            space = Space(str(candidate), argv, 128, backbone)
            self.judge_space(space)
            self.judge_trainings(space, plan)

    def judge_pretrained(self, plan: Plan) -> None:
        """Pre-train a network on the pool, and judge what starts from it."""
        run = self.pretrain(plan.pretraining_steps)
        argv = (f"--model.backbone={BACKBONE}", f"--model.weights={run}")
        backbone, _ = load_candidate(resolve_candidates(str(run))[0], self.source.data.input_spec)
        space = Space(PRETRAINED, argv, 128, backbone)
        self.judge_space(space)
        self.judge_trainings(space, plan)

    def judge_trainings(self, space: Space, plan: Plan) -> None:
        """Judge trainings from a start."""
        if plan.training_steps:
            for recipe in make_trainings(space, self.source, plan.training_steps):
                self.judge(recipe)

    def pretrain(self, steps: int) -> Path:
        """Pre-train on the pool and the images of the labels, without their labels, unless a run has done so."""
        marker = self.folder / "pretraining.json"
        if marker.is_file():
            known = read_json(marker, "remove it")
            if known.get("key") == self.key and known.get("steps") == steps and Path(known["run"]).is_dir():
                return Path(known["run"])
        begin = time.monotonic()
        batch = min(PRETRAINING_BATCH, max(2, self.source.pool_size))
        argv = [*self.source.data_argv(None), "--model=SelfSupervisedModule", "--model.objective=SimCLR"]
        argv += ["--model.objective.hidden=512", "--model.objective.projection=128", f"--model.backbone={BACKBONE}"]
        argv += ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.002"]
        argv += ["--model.lr_scheduler=WarmupCosine", f"--model.lr_scheduler.warmup_steps={min(50, steps // 4)}"]
        argv += [f"--data.batch_size={batch}", f"--data.steps_per_epoch={steps}", "--trainer.max_epochs=1"]
        view = {"crop_scale": "[0.3,1.0]", "flip": "false", "brightness": "0.4", "contrast": "0.4", "blur": "0"}
        argv += [f"--data.pretrain_view.{name}={value}" for name, value in view.items()]
        run = get_run(fit(argv, f"solve/{self.name}/pretraining"))
        write_json(marker, {"key": self.key, "steps": steps, "run": str(run)})
        self.report(f"Pre-trained on {self.source.pool_size:,} images in {time.monotonic() - begin:.0f} s.")
        return run

    def judge(self, recipe: Recipe) -> None:
        """Cross-fit a recipe, unless an earlier call has done so, and keep its result."""
        unit = hashlib.sha256(repr((self.key, recipe.name, recipe.argv, recipe.steps)).encode()).hexdigest()
        path = self.folder / "units" / f"{unit[:32]}.safetensors"
        probabilities = _read_unit(path, len(self.source.labels), self.source.data.num_classes)
        if probabilities is None:
            try:
                probabilities = cross_fit(recipe, self.source, f"solve/{self.name}/trainings/{unit[:8]}", self.report)
            except InputError as error:
                self.failed.append(f"{recipe.name}: {describe_failure(error)}")
                self.report(f"{self.failed[-1]}")
                if not self.results and recipe.uses_unlabeled is False:
                    raise
                return
            write_weights(path, {"probabilities": probabilities.contiguous()}, {"recipe": recipe.name})
        right = probabilities[self.judged].argmax(1) == self.source.labels[self.judged]
        correct = right.numpy()[None].astype(np.float64)
        accuracy = estimate_accuracy(correct, self.folds, self.groups)
        self.results.append(Result(recipe, probabilities, correct, accuracy))
        self.report(f"{recipe.name}: {format_estimate(accuracy)}")

    @property
    def folds(self) -> np.ndarray:
        """Fold of each judged example, (1, J)."""
        folds: np.ndarray = self.source.folds[self.source.folds >= 0][None]
        return folds

    @property
    def groups(self) -> list[str] | None:
        """Group of each judged example."""
        given = self.source.groups
        return None if given is None else [given[i] for i in np.flatnonzero(self.source.folds >= 0).tolist()]

    def choose(self, among: Sequence[int] | None = None) -> int:
        """Return the position of the best result."""
        positions = list(range(len(self.results))) if among is None else list(among)
        return positions[choose([float(self.results[i].correct.mean()) for i in positions])]

    # --- the end

    def compare_on_test(self, best: Result, with_pool: Result, reference: Result, delivery: Delivery) -> Comparison:
        """Compare the best recipes with and without the unlabeled examples on the source's own test split."""
        correct = {best.recipe.name: delivery.test_correct}
        for result in (with_pool, reference):
            if result.recipe.name not in correct:
                self.report(f"Training {result.recipe.name} on all labels, to compare on the test images.")
                cli = train(result.recipe, self.source, None, f"solve/{self.name}/compared")
                correct[result.recipe.name] = test(cli.model, self.source)
        ours, theirs = (correct[result.recipe.name] for result in (with_pool, reference))
        assert ours is not None
        assert theirs is not None
        return compare_on_test(ours.numpy(), theirs.numpy())

    def conclude(self, plan: Plan, best: Result, delivery: Delivery) -> Solution:
        """Judge, and write the summary and the page."""
        chosen = estimate_chosen(np.stack([result.correct for result in self.results]), self.folds, self.groups)
        labels_only = [i for i, result in enumerate(self.results) if not result.recipe.uses_unlabeled]
        with_pool = [i for i, result in enumerate(self.results) if result.recipe.uses_unlabeled]
        comparison = None
        if with_pool and labels_only:  # the best of each kind, chosen on other folds than those that it is scored on
            ours, theirs = (
                score_choice(np.stack([self.results[i].correct for i in positions]), self.folds)
                for positions in (with_pool, labels_only)
            )
            comparison = compare(ours, theirs, self.folds, self.groups)
        reference = self.results[self.choose(labels_only)] if labels_only else best
        if comparison is not None and delivery.test_correct is not None:
            comparison = self.compare_on_test(best, self.results[self.choose(with_pool)], reference, delivery)
        verdict = format_verdict(
            best.recipe.name, len(self.results), len(self.source.labels), chosen, comparison, reference.recipe.name,
            delivery,
        )  # fmt: skip
        rows = [
            [r.recipe.name, "yes" if r.recipe.uses_unlabeled else "no", format_estimate(r.accuracy)]
            for r in sorted(self.results, key=lambda r: -float(r.correct.mean()))
        ]
        summary: dict[str, Any] = {
            "verdict": verdict,
            "recipe": best.recipe.name,
            "accuracy": [chosen.mean, chosen.low, chosen.high],
            "test_accuracy": None if delivery.test_correct is None else float(delivery.test_correct.double().mean()),
            "unlabeled": None if comparison is None else comparison.verdict,
            "recipes": {r.recipe.name: float(r.correct.mean()) for r in self.results},
            "left_out": [*plan.dropped],
            "failed": self.failed,
            "run": str(delivery.run),
            "temperature": delivery.temperature,
            "not_exported": delivery.not_exported,
            "seconds": round(time.monotonic() - self.begin, 1),
        }
        write_json(self.folder / "summary.json", summary)
        page = render_solution(self.name, verdict, rows, [*plan.dropped, *self.failed], delivery, self.source.data)
        write_text(self.folder / "report.html", page)
        return Solution(self.folder, verdict, rows, delivery.run, summary)


def _read_unit(path: Path, count: int, num_classes: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        probabilities = read_weights(path)[0].get("probabilities")
    except InputError:  # damaged: computed again
        return None
    if probabilities is None or probabilities.shape != (count, num_classes):
        return None
    return probabilities
