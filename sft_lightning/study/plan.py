"""Plan a study: list the runs of methods with one or more stages, by label budget and seed."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse.typing import Path_fr

from sft_lightning._version import __version__
from sft_lightning.study.inputs import VARIED, InputReader, Inputs
from sft_lightning.utils.errors import InputError, did_you_mean

NUM_LABELS = "data.init_args.num_labels"  # a stage that sets it does not depend on the budget


@dataclass
class Stage:
    """One training of a method, an ordinary `fit`.

    Args:
        config: YAML files that `fit` takes, relative to the file that names them.
        options: Further settings by their full names, such as `model.init_args.lambda_u: 5`.
        weights: Name of an earlier stage, whose weights this one starts from.
        name: Name for the `weights` of later stages and for the run's folder.
    """

    config: list[Path_fr]
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    name: str = "tune"


class StudyRun(NamedTuple):
    """One training of a study.

    Attributes:
        method: Name of the method.
        stage: Stage of the method.
        budget: Number of labels.
        seed: Seed of the split, the initialization and the batches.
        key: Digest of everything that the result depends on; equal for stages that methods or budgets share.
        argv: Arguments of `fit` without the name of the run and the weights.
        start: Key of the run whose weights it starts from, or None.
        is_final: Whether it is the last stage of its method, which is tested.
        inputs: Digests from `InputReader`; a part of the key.
        folder: Name of the run below the study's folder, from `assign_folders`.
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

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        labels = "" if NUM_LABELS in self.stage.options else f"{self.budget} labels, "
        return f"{self.method}, {self.stage.name}, {labels}seed {self.seed}"

    @property
    def label(self) -> str:
        """Name of the run's folder, such as `100_labels/freematch/seed_0`, which runs with other inputs may share."""
        number = self.stage.options.get(NUM_LABELS, self.budget)
        method = self.method if self.is_final else f"{self.method}_{self.stage.name}"
        return f"{'all' if number is None else number}_labels/{simplify(method)}/seed_{self.seed}"


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
) -> list[StudyRun]:
    """List all runs of a study, each after the run that it starts from, and those of a seed together.

    Args:
        methods: Stages of each method by its name.
        budgets: Numbers of labels.
        seeds: Seeds of the runs of each method.
        data: Data module of all stages as `--data` takes it; None to use that of each stage's config.
        options: Settings of all stages, as in `Stage.options`.

    Raises:
        InputError: A method has no stage, or starts from a stage that it does not have, or the data cannot be read.
    """
    check_methods(methods, budgets, seeds)
    reader = InputReader()
    runs: list[StudyRun] = []
    for budget in budgets:
        for seed in seeds:
            for method, stages in methods.items():
                keys: dict[str, str] = {}
                for stage in stages:
                    settings = {
                        "seed_everything": seed,
                        "data.init_args.seed": seed,
                        NUM_LABELS: budget,
                        **options,
                        **stage.options,
                    }
                    start = None if stage.weights is None else keys[stage.weights]
                    argv = [argument for path in stage.config for argument in ("--config", str(path.absolute))]
                    if data is not None:
                        argv.append(f"--data={json.dumps(data)}")
                    fixed = [*argv, *_format_options({n: v for n, v in settings.items() if n not in VARIED})]
                    inputs = reader.read(fixed, [Path(path.absolute) for path in stage.config])
                    varied = {name: settings[name] for name in VARIED}
                    inputs = {"version": __version__, **inputs}
                    key = _digest([{**inputs, "names": None}, varied, start])
                    keys[stage.name] = key
                    is_final = stage is stages[-1]
                    argv += _format_options(settings)
                    runs.append(StudyRun(method, stage, budget, seed, key, tuple(argv), start, is_final, inputs))
    return runs


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
            if stage.weights is not None and stage.weights not in known:
                earlier = f"earlier stages: {', '.join(known)}" if known else "no stage comes before it"
                hint = did_you_mean(stage.weights, known)
                raise InputError(
                    f"method {method!r} starts stage {stage.name!r} from {stage.weights!r}{hint}: {earlier}"
                )
            if stage.name in known:
                raise InputError(f"method {method!r} has two stages named {stage.name!r}: give each its own name")
            known.append(stage.name)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
