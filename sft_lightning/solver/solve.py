"""`sft-lightning solve`: from a source with few labels to the best model, a verdict that holds, and the next labels."""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sft_lightning.data.vision.images import Resize
from sft_lightning.runs.lock import lock_folder
from sft_lightning.runs.paths import LOGS, check_run_name
from sft_lightning.solver.defects import DefectComparison, compare_with_detector
from sft_lightning.solver.deliver import Delivery, deliver, test
from sft_lightning.solver.find_starts import NONE, FoundStart, check_knowledge, fetch_default, find_starts
from sft_lightning.solver.judged import JudgedRecipe, JudgedRecipes
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.look import describe_source, describe_starts
from sft_lightning.solver.mask_delivery import deliver_masks
from sft_lightning.solver.mask_trials import MaskTrials
from sft_lightning.solver.page import render_solution
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.recipes import train
from sft_lightning.solver.scoring import calibrate
from sft_lightning.solver.slurm import find_job, solve_on_slurm
from sft_lightning.solver.solution import Solution
from sft_lightning.solver.starts import Start
from sft_lightning.solver.trainings import judge_trainings
from sft_lightning.solver.trials import Trials
from sft_lightning.solver.verdict import format_estimate, format_verdict
from sft_lightning.study.folds import score_examples
from sft_lightning.study.judge import Comparison, compare_on_test
from sft_lightning.transfer.candidates import Candidate, check_candidate, load_candidate, resolve_candidates
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, StoppedBySignal, check_min, check_positive


def solve(
    source: str,
    minutes: float = 30.0,
    name: str | None = None,
    num_labels: int | None = None,
    candidates: list[str | Candidate] | Candidate | str | None = None,
    labels: str | None = None,
    label_separator: str | None = None,
    label_columns: str | list[str] | None = None,
    image_size: int | None = None,
    resize: Resize = "crop",
    value_range: tuple[float, float] | None = None,
    class_names: list[str] | None = None,
    class_colors: dict[str, list[int]] | None = None,
    seed: int = 0,
    root: str = "data",
    download: bool = False,
    launcher: Literal["local", "slurm"] = "local",
    slurm: dict[str, Any] | None = None,
) -> Solution:
    """Compare recipes on the labels, train the best one on all of them, and say what to label next.

    Recipes are compared by cross-fitting: each label is predicted by classifiers that have not seen its fold. Call it
    again with the same name to go on after a stop, after labeling, or with more minutes; what is known is not computed
    again.

    Args:
        source: Source of the examples, as `data.init_args.source` takes it: a folder, a table, or the name of a data
            set.
        minutes: Time for the whole call, about: the cheapest recipes and the delivery of the best are always made.
        name: Name of the solution, whose folder is `lightning_logs/solve/NAME`; null for that of the source.
        num_labels: Number of labels to use, to see what fewer would give; null for all.
        candidates: Start or starts to compare: names of backbones with published weights, weights files or runs, or a
            mapping of backbone, weights and image_size; `none` for none, null for those at hand: published weights
            that were fetched before, weights files in the current folder that say which network they are of, and runs
            that have learned without labels.
        labels: A CSV of further labels with the columns id,label, as `sft-lightning label` writes it.
        label_separator: Separator of the classes of an example, as in `dog;outdoors`; null where each has one.
        label_columns: Columns of 0 and 1 of a table, each a class, or a pattern such as `tag_*`; null for one column of
            labels.
        image_size: Side of the images in pixels; null for that of the source, at most 64.
        resize: Method that makes image files square: `crop` keeps the central square, `pad` adds background to the
            shorter side, and `squash` changes the ratio of its sides.
        value_range: Values of black and white in images of more than 8 bits, as in [0, 4095]; null for the scale that
            `data.init_args.value_range` describes.
        class_names: Names of the classes in the order of their numbers; null for those of the source.
        class_colors: Color of each class in masks that hold colors, as in {road: [128, 64, 128]}.
        seed: Seed of the folds and of the labels, if fewer than all are used.
        root: Folder that holds torchvision data sets.
        download: Whether to fetch a torchvision data set that is not in `root`, and a published start where none is at
            hand.
        launcher: Where to compute: `local` for this process, or `slurm` for a job whose progress is printed here (with
            the extra `slurm`). The job has this folder as its own, and is requeued where Slurm interrupts it.
        slurm: Settings of sbatch for the job, as submitit names them: partition, time (minutes), cpus_per_task,
            gpus_per_node, mem, account, ...

    Returns:
        The solution with its model, verdict and files; as text, its summary.

    Raises:
        InputError: The source cannot be read or has labels of fewer than two classes, or a candidate cannot be loaded.
        StoppedBySignal: A signal stopped the work; the same call goes on.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("launcher", "slurm")}
    begin = time.monotonic()
    check_positive(minutes=minutes)
    check_min(2, num_labels=num_labels)
    named_after = Path(source).stem if Path(source).is_file() else Path(source).name
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", named_after).strip("._-") or "data"
    check_run_name("name", name)
    named = _resolve(candidates)
    folder = Path(LOGS) / "solve" / name
    if launcher == "slurm":
        return solve_on_slurm(folder, {**arguments, "name": name}, slurm or {})
    if slurm:
        raise InputError(f"slurm is {slurm}, but launcher is local: set launcher to slurm, or leave slurm out")
    if job := find_job(folder):
        raise InputError(
            f"Slurm job {job} solves {name!r}: add --launcher slurm to wait for it, or end it first (scancel {job})"
        )
    with lock_folder(folder, f"solution {name!r}"), _stop_on_sigterm():
        try:
            sys.stderr.write(f"[   0 s] Looking at {source}\n")  # many files take minutes
            opened = read_source(
                source, folder, num_labels, image_size, seed, root, labels, download,
                resize=None if resize == "crop" else resize, value_range=value_range, class_names=class_names,
                label_separator=label_separator, label_columns=label_columns,
                class_colors=class_colors,
            )  # fmt: skip
            make = _MaskSolver if opened.data.target == "mask" else _Solver
            return make(opened, minutes, name, folder, begin).run(named, download)
        except (StoppedBySignal, KeyboardInterrupt) as error:
            number = error.signal if isinstance(error, StoppedBySignal) else signal.SIGINT
            stopped = signal.Signals(number).name
            raise StoppedBySignal(f"{stopped}: start solve again to go on; what is done is kept", number) from error


def _resolve(candidates: Sequence[str | Candidate] | Candidate | str | None) -> list[Candidate] | None:
    """Return the starts that the user named, all of which exist; None to search for some."""
    if candidates is None:
        return None
    given = [candidates] if isinstance(candidates, str | Candidate) else candidates
    named = [one for each in given if each != NONE for one in resolve_candidates(each)]
    for one in named:
        check_candidate(one, [NONE])
    return named


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does, in the main thread, where alone handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise StoppedBySignal(signal.Signals(number).name, number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


class _Solver:
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
        self.report(f"Chosen: {best.recipe.name}; training it on all {len(self.source.labels)} labels.")
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

    def score_test(self, result: Any, model: Any) -> Tensor:
        """Return the scores of the source's own test split, (T,).

        Args:
            result: Result of the recipe.
            model: Model that was trained by it.
        """
        return test(model, result.source, calibrate(result.probabilities, result.source))

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
                takes_masks = self.source.data.target == "mask"
                load_candidate(one, self.source.data.input_spec, self.source.given_size, takes_masks)
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
        scores = {best.recipe.name: delivery.test_scores}
        for result in (with_pool, reference):
            if result.recipe.name not in scores:
                self.report(f"Training {result.recipe.name} on all labels, to compare on the test examples.")
                cli = train(result.recipe, result.source, None, f"solve/{self.name}/compared")
                scores[result.recipe.name] = self.score_test(result, cli.model)
        ours, theirs = (scores[result.recipe.name] for result in (with_pool, reference))
        assert ours is not None
        assert theirs is not None
        return compare_on_test(ours.numpy(), theirs.numpy())

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
        verdict = format_verdict(
            best.recipe.name, len(trials.results), self.source, chosen, comparison, reference.recipe.name, delivery,
            trials.caveat, is_ahead=best.estimate.mean >= max(result.estimate.mean for result in trials.results),
        )  # fmt: skip
        defects = self.compare_defects(best)
        if defects is not None:
            verdict.insert(len(verdict) - len(delivery.advice), str(defects))
        rows = [
            [r.recipe.name, "yes" if r.recipe.uses_unlabeled else "no", format_estimate(r.estimate)]
            for r in sorted(trials.results, key=lambda r: -r.estimate.mean)
        ]
        key, metric = self.source.task.example_metric
        held = delivery.test_scores
        summary: dict[str, Any] = {
            "verdict": verdict,
            "recipe": best.recipe.name,
            "metric": metric,
            "target": self.source.data.target,
            "label_settings": {k: v for k, v in self.source.settings.items() if k.startswith("label_")},
            key: [chosen.mean, chosen.low, chosen.high],
            f"test_{key}": None if held is None else float(held.double().mean()),
            "unjudged": self.source.unjudged,
            "unlabeled": None if comparison is None else comparison.verdict,
            "defects": None if defects is None else defects._asdict(),
            "recipes": {r.recipe.name: r.estimate.mean for r in trials.results},
            "left_out": [*self.plan.dropped],
            "failed": trials.failed,
            "run": str(delivery.run),
            "modality": self.source.modality.name,
            "temperature": delivery.calibration.value,
            "not_exported": delivery.not_exported,
            "seconds": round(time.monotonic() - self.begin, 1),
        }
        page = render_solution(
            self.name, verdict, rows, [*self.plan.dropped, *trials.failed], delivery, self.source.data, metric
        )
        write_text(self.folder / "report.html", page)
        write_json(self.folder / "summary.json", summary)  # last, since it says that all is there
        return Solution(self.folder, verdict, rows, delivery.run, summary)


class _MaskSolver(_Solver):
    """The steps of one call for examples with masks."""

    trials_class = MaskTrials

    def compare(self, found: list[FoundStart]) -> JudgedRecipe:
        """Plan and judge recipes, and return the best result."""
        trials: MaskTrials = self.trials
        trials.compare(found)
        return trials.results[trials.choose()]

    def deliver(self, best: JudgedRecipe, name: str) -> Delivery:
        """Train the best recipe on all masks, and write the files."""
        return deliver_masks(best, self.trials.judged, name, self.folder)

    def score_test(self, result: JudgedRecipe, model: Any) -> Tensor:
        """Return the scores of the source's own test split, (T,)."""
        return score_examples(model, result.source.data, result.source.task, "test")

    def compare_defects(self, best: JudgedRecipe) -> None:
        """Return None, since the examples have masks in place of one class each."""
