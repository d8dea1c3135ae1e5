"""Plan a study: list the runs of methods with one or more stages, by label budget and seed."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse.typing import Path_fr

from sft_lightning._version import __version__
from sft_lightning.study.folds import Draws, draw_folds
from sft_lightning.study.inputs import VARIED, InputReader, Inputs
from sft_lightning.utils.errors import InputError, did_you_mean

NUM_LABELS = "data.init_args.num_labels"  # a stage that sets it does not depend on the budget
SPLIT_FILE = "data.init_args.split_file"


@dataclass
class Stage:
    """One training of a method, an ordinary `fit`.

    Args:
        config: YAML files that `fit` takes, relative to the file that names them.
        options: Further settings by their full names, such as `model.init_args.lambda_u: 5`.
        weights: Name of an earlier stage, whose weights this one starts from.
        name: Name for the `weights` and `teacher` of later stages and for the run's folder.
        teacher: Name of an earlier stage, whose network teaches that of this one (`DistillModule`).
    """

    config: list[Path_fr]
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    name: str = "tune"
    teacher: str | None = None

    @property
    def start(self) -> str | None:
        """Name of the earlier stage that it needs, or None."""
        return self.weights if self.teacher is None else self.teacher


class StudyRun(NamedTuple):
    """One training of a study.

    Attributes:
        method: Name of the method.
        stage: Stage of the method.
        budget: Number of labels.
        seed: Seed of the split, the initialization and the batches.
        key: Digest of everything that the result depends on; equal for stages that methods or budgets share.
        argv: Arguments of `fit` without the name of the run and the weights.
        start: Key of the run whose weights it starts from or that teaches it, or None.
        is_final: Whether it is the last stage of its method, which is tested.
        inputs: Digests from `InputReader`; a part of the key.
        folder: Name of the run below the study's folder, from `assign_folders`.
        fold: Number of the fold that it is tested on; None where the source has a test split.
    """

    method: str
    stage: Stage
    budget: int
    seed: int
    key: str
    argv: tuple[str, ...]
    start: str | None
    is_final: bool
    inputs: Inputs | None = None
    folder: str = ""
    fold: int | None = None

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        labels = "" if NUM_LABELS in self.stage.options and not fold else f"{self.budget} labels, "
        return f"{self.method}, {self.stage.name}, {labels}seed {self.seed}{fold}"

    @property
    def label(self) -> str:
        """Name of the run's folder, such as `100_labels/freematch/seed_0`, which runs with other inputs may share."""
        number = self.budget if self.fold is not None else self.stage.options.get(NUM_LABELS, self.budget)
        method = self.method if self.is_final else f"{self.method}_{self.stage.name}"
        fold = "" if self.fold is None else f"_fold_{self.fold}"
        return f"{'all' if number is None else number}_labels/{simplify(method)}/seed_{self.seed}{fold}"


def simplify(name: str) -> str:
    """Return a name without the characters that a folder should not have.

    Args:
        name: Name from the user.
    """
    return re.sub("[^a-zA-Z0-9]+", "_", name)


def plan(
    methods: dict[str, list[Stage]],
    budgets: Sequence[int],
    seeds: Sequence[int],
    data: dict[str, Any] | None,
    options: dict[str, Any],
    draws: Draws | None = None,
) -> list[StudyRun]:
    """List all runs of a study, each after the run that it starts from, and those of a seed together.

    Args:
        methods: Stages of each method by its name.
        budgets: Numbers of labels.
        seeds: Seeds of the runs of each method.
        data: Data module of all stages as `--data` takes it; None to use that of each stage's config.
        options: Settings of all stages, as in `Stage.options`.
        draws: Folds of each budget and seed, from `plan_folds`; each method is trained once for each of them.

    Raises:
        InputError: A method has no stage, or starts from a stage that it does not have, or the data cannot be read.
    """
    check_methods(methods, budgets, seeds)
    reader = InputReader()
    runs: list[StudyRun] = []
    for budget, seed in itertools.product(budgets, seeds):
        draw = None if draws is None else draws[budget, seed]
        for fold, (method, stages) in itertools.product(
            [None] if draw is None else range(len(draw.paths)), methods.items()
        ):
            keys: dict[str, str] = {}
            for stage in stages:
                settings = _join_settings(budget, seed, options, stage)
                start = None if stage.start is None else keys[stage.start]
                argv = _format_data(stage, data)
                fixed = [*argv, *_format_options({n: v for n, v in settings.items() if n not in VARIED})]
                inputs = reader.read(fixed, [Path(path.absolute) for path in stage.config])
                inputs = {"version": __version__, **inputs}
                depends = [{**inputs, "names": None}, {name: settings[name] for name in VARIED}, start]
                depends += [] if stage.teacher is None else ["teacher"]
                if draw is not None and fold is not None:
                    if SPLIT_FILE in settings:
                        raise InputError(
                            f"{SPLIT_FILE} is {settings[SPLIT_FILE]!r}, and folds makes splits: leave it out"
                        )
                    settings[SPLIT_FILE] = str(draw.paths[fold])
                    depends.append(draw.digest(fold))
                key = keys[stage.name] = _digest(depends)
                argv += _format_options(settings)
                is_final = stage is stages[-1]
                run = StudyRun(method, stage, budget, seed, key, tuple(argv), start, is_final, inputs, fold=fold)
                runs.append(run)
    return runs


def plan_folds(
    stage: Stage,
    budgets: Sequence[int],
    seeds: Sequence[int],
    data: dict[str, Any] | None,
    options: dict[str, Any],
    folds: int,
    folder: Path,
) -> Draws:
    """Divide the labels of each budget and seed into folds, which all methods share.

    Args:
        stage: Stage whose data to divide.
        budgets: Numbers of labels.
        seeds: Seeds.
        data: Data module, as in `plan`.
        options: Settings of all stages, as in `Stage.options`.
        folds: Number of folds.
        folder: Folder of the split files.

    Raises:
        InputError: The source holds examples out already, or a class has too few labels.
    """
    draws = {}
    for budget, seed in itertools.product(budgets, seeds):
        argv = [*_format_data(stage, data), *_format_options(_join_settings(budget, seed, options, stage))]
        draws[budget, seed] = draw_folds(argv, seed, folds, folder / f"{budget}_labels" / f"seed_{seed}")
    return draws


def _join_settings(budget: int, seed: int, options: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    varied = {"seed_everything": seed, "data.init_args.seed": seed, NUM_LABELS: budget}
    return {**varied, **options, **stage.options}


def _format_data(stage: Stage, data: dict[str, Any] | None) -> list[str]:
    """Return the arguments with the configs of a stage and the data module of all stages."""
    argv = [argument for path in stage.config for argument in ("--config", str(path.absolute))]
    return argv if data is None else [*argv, f"--data={json.dumps(data)}"]


def _format_options(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in settings.items()]


def check_methods(methods: dict[str, list[Stage]], budgets: Sequence[int], seeds: Sequence[int]) -> None:
    """Check the methods, budgets and seeds of a study.

    Args:
        methods: Stages of each method by its name.
        budgets: Numbers of labels.
        seeds: Seeds of the runs of each method.

    Raises:
        InputError: A list is empty or has duplicates, or a stage starts from a stage that does not come before it.
    """
    for name, given in (("budgets", budgets), ("seeds", seeds), ("methods", methods)):
        if not given:
            raise InputError(f"{name} is empty: give at least one")
        if len(set(given)) < len(given):
            raise InputError(f"{name} names one twice: {', '.join(map(str, given))}")
    if min(budgets) < 1:
        raise InputError(f"budgets has {min(budgets)}: a study compares by 1 label or more")
    for method, stages in methods.items():
        if not stages:
            raise InputError(f"method {method!r} has no stage: give a list of trainings, each with a config")
        known: list[str] = []
        for stage in stages:
            if stage.weights is not None and stage.teacher is not None:
                raise InputError(
                    f"method {method!r}: stage {stage.name!r} has weights and teacher, and a study passes one: leave "
                    "one out"
                )
            if stage.start is not None and stage.start not in known:
                earlier = f"earlier stages: {', '.join(known)}" if known else "no stage comes before it"
                hint = did_you_mean(stage.start, known)
                raise InputError(f"method {method!r} starts stage {stage.name!r} from {stage.start!r}{hint}: {earlier}")
            if stage.name in known:
                raise InputError(f"method {method!r} has two stages named {stage.name!r}: give each its own name")
            known.append(stage.name)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
