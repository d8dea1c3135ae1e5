"""What a study compares, as a list of trainings: methods of one or more stages, label budgets and seeds."""

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

NUM_LABELS = "data.init_args.num_labels"  # a stage that sets it depends on no budget


@dataclass
class Stage:
    """One training of a method, an ordinary `fit`.

    Args:
        config: YAML files that `fit` takes, relative to the file that names them.
        options: Further settings by their full names, such as `model.init_args.lambda_u: 5`.
        weights: Name of an earlier stage, whose weights this one starts from.
        name: For a later stage's `weights`, and in the run's folder.
    """

    config: list[Path_fr]
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    name: str = "tune"


class StudyRun(NamedTuple):
    """One training.

    Attributes:
        method: That it belongs to.
        stage: The training.
        budget: Number of labels.
        seed: Of the split, the initialization and the batches.
        key: Digest of all that its result depends on; equal for stages that two methods or budgets share.
        words: For `fit`, but for the name and the weights.
        start: Key of the run that it starts from, or None.
        final: Whether it is the last of its method, which is tested.
        inputs: What its result depends on, from `InputReader`; a part of the key.
    """

    method: str
    stage: Stage
    budget: int
    seed: int
    key: str
    words: tuple[str, ...]
    start: str | None
    final: bool
    inputs: Inputs | None = None

    @property
    def title(self) -> str:
        """For the progress."""
        labels = "" if NUM_LABELS in self.stage.options else f"{self.budget} labels, "
        return f"{self.method}, {self.stage.name}, {labels}seed {self.seed}"

    @property
    def folder(self) -> str:
        """Part of the run's name."""
        return f"{re.sub('[^a-zA-Z0-9]+', '_', self.title)}_{self.digest}"

    @property
    def digest(self) -> str:
        """The end of the folder's name."""
        return self.key[:8]


def plan(
    methods: dict[str, list[Stage]],
    budgets: Sequence[int],
    seeds: Sequence[int],
    data: dict[str, Any] | None,
    options: dict[str, Any],
) -> list[StudyRun]:
    """All trainings, each after those that it starts from; those of a seed side by side.

    Args:
        methods: Stages by the name of the method.
        budgets: Numbers of labels.
        seeds: One run of each method for each.
        data: What `--data` takes, for all stages; None for that of the stages' own configs.
        options: For all stages, as `Stage.options`.

    Raises:
        InputError: A method has no stage or starts from one that it does not have, or the data cannot be read.
    """
    check_methods(methods, budgets, seeds)
    reader = InputReader()
    found: list[StudyRun] = []
    for budget in budgets:
        for seed in seeds:
            for method, stages in methods.items():
                done: dict[str, str] = {}
                for stage in stages:
                    settings = {
                        "seed_everything": seed,
                        "data.init_args.seed": seed,
                        NUM_LABELS: budget,
                        **options,
                        **stage.options,
                    }
                    start = None if stage.weights is None else done[stage.weights]
                    words = [word for path in stage.config for word in ("--config", str(path.absolute))]
                    if data is not None:
                        words.append(f"--data={json.dumps(data)}")
                    fixed = [*words, *_format_options({n: v for n, v in settings.items() if n not in VARIED})]
                    inputs = reader.read(fixed, [Path(path.absolute) for path in stage.config])
                    varied = {name: settings[name] for name in VARIED}
                    inputs = {"version": __version__, **inputs}
                    key = _digest([{**inputs, "names": None}, varied, start])
                    done[stage.name] = key
                    final = stage is stages[-1]
                    words += _format_options(settings)
                    found.append(StudyRun(method, stage, budget, seed, key, tuple(words), start, final, inputs))
    return found


def _format_options(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in settings.items()]


def check_methods(methods: dict[str, list[Stage]], budgets: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuse what cannot be a study.

    Args:
        methods: Stages by the name of the method.
        budgets: Numbers of labels.
        seeds: Seeds of the runs of each method.

    Raises:
        InputError: A list is empty or names one twice, or a stage starts from one that is not there.
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
                told = f"earlier stages: {', '.join(known)}" if known else "there is no earlier one"
                hint = did_you_mean(stage.weights, known)
                raise InputError(f"method {method!r} starts stage {stage.name!r} from {stage.weights!r}{hint}: {told}")
            if stage.name in known:
                raise InputError(f"method {method!r} has two stages named {stage.name!r}: give each its own name")
            known.append(stage.name)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
