"""What fits into the minutes: stages with measured seconds, decided when due, saved, and kept by later calls."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json_object

MIN_POOL = 500  # unlabeled examples below which a network learns nothing from them
# Optimizer steps, far enough apart that a call on a busier machine chooses the same and finds what is done.
PRETRAINING_STEPS = (100, 150, 200, 300, 450, 700, 1000, 1500, 2200, 3000, 4000)
TRAINING_STEPS = (60, 90, 120, 180, 270, 400, 600)
MIN_STEPS_OF_MANY = 180  # of a training, for which more than two are compared
RUNG = 3  # trainings of the first rung take a third of the steps
# Shares of the time: of the graph on pixels, the features of all starts, pre-training alone or beside other starts.
PIXELS_SHARE, STARTS_SHARE, PRETRAINING_SHARE, CONTINUED_SHARE = 0.15, 0.25, 0.4, 0.2
# Shares of the time before delivery, after which none is to run.
PRETRAINING_END, TRAININGS_END = 0.65, 0.9
DELIVERY_SECONDS = 8.0  # of exported files and the page, on one core
MIN_SECONDS = 20.0  # that a cheap stage may always take
PATIENCE = 1.3  # times the planned seconds, after which a stage is given up
STEP_OVERHEAD = 1.3  # a step with views, loss and optimizer, relative to forward and backward pass
START_SECONDS = 3.0  # of a training before its first step


@dataclass(frozen=True)
class Stage:
    """Stage of a plan.

    Attributes:
        name: Name of the stage, one of its kind.
        what: Phrase for readers.
        seconds: Predicted duration.
        settings: What was decided, such as the number of steps.
        dropped: Sentence about why the stage is left out; empty if it runs.
    """

    name: str
    what: str = ""
    seconds: float = 0.0
    settings: dict[str, int] = field(default_factory=dict)
    dropped: str = ""


class Plan:
    """Stages that were decided so far, in `plan.json`.

    Attributes:
        minutes: Time that was given.
        stages: Stages in the order of their decision.
        reserved: Seconds that delivery takes, which no stage before it may use.
    """

    def __init__(self, path: Path, key: str, minutes: float, begin: float | None = None) -> None:
        """Take up the decisions of an earlier call on the same data with as many minutes or more.

        Args:
            path: Path of `plan.json`.
            key: Hash of the data.
            minutes: Time in minutes.
            begin: Time of `time.monotonic` at which the call began; None for now.

        Raises:
            InputError: The file is damaged.
        """
        self._path, self._key, self._begin = path, key, time.monotonic() if begin is None else begin
        self.minutes, self.stages, self.reserved = minutes, list[Stage](), DELIVERY_SECONDS
        self._known: dict[str, Stage] = {}
        known = read_json_object(path, "remove it") if path.is_file() else {}
        try:
            if known.get("key") == key and known.get("minutes", 0) >= minutes and "stages" in known:
                self._known = {stage["name"]: Stage(**stage) for stage in known["stages"]}
                self.minutes = known["minutes"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} does not hold a plan ({error}): remove it") from error

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of this call."""
        return time.monotonic() - self._begin

    @property
    def seconds(self) -> float:
        """All seconds of a call."""
        return 60 * self.minutes

    def count_left(self, share: float) -> float:
        """Return the seconds until a share of the time before delivery has passed.

        Args:
            share: Share of the time, from 0 to 1.
        """
        return share * (self.seconds - self.reserved) - self.elapsed

    def count_minutes(self, seconds: float, share: float) -> int:
        """Return the `--minutes` with which a share of the time before delivery is enough.

        Args:
            seconds: Time that is needed.
            share: Share of the time that it may take.
        """
        return max(math.ceil(self.minutes) + 1, math.ceil((seconds / share + self.reserved) / 60))

    @property
    def dropped(self) -> list[str]:
        """Sentences about what is left out."""
        return [stage.dropped for stage in self.stages if stage.dropped]

    def decide(self, name: str, make: Callable[[], Stage]) -> Stage:
        """Return the decision of an earlier call, or make it, and save it.

        Args:
            name: Name of the stage.
            make: Function that decides.
        """
        stage = self._known.get(name) or make()
        self.stages = [*(one for one in self.stages if one.name != name), stage]
        later = [one for known, one in self._known.items() if known not in {one.name for one in self.stages}]
        stages: list[dict[str, Any]] = [asdict(one) for one in (*self.stages, *later)]
        write_json(self._path, {"key": self._key, "minutes": self.minutes, "stages": stages})
        return stage

    def drop(self, name: str, sentence: str) -> Stage:
        """Save that a stage is left out.

        Args:
            name: Name of the stage.
            sentence: Reason.
        """
        return self.decide(name, lambda: Stage(name, dropped=sentence))


def choose_steps(grid: Sequence[int], seconds: float, step_seconds: float) -> int:
    """Return the largest number of steps that fits, or 0.

    Args:
        grid: Numbers of steps, rising.
        seconds: Time.
        step_seconds: Seconds of a step.
    """
    return max((steps for steps in grid if steps * step_seconds <= seconds), default=0)


@dataclass(frozen=True)
class Cost:
    """Duration of a training: `start` seconds, and `step` seconds for each optimizer step."""

    start: float
    step: float

    def of(self, steps: int) -> float:
        """Return the seconds of a training.

        Args:
            steps: Number of optimizer steps.
        """
        return self.start + steps * self.step


def predict_halving(costs: Sequence[Cost], steps: int, num_folds: int, num_final: int) -> float:
    """Predict the seconds of successive halving: all at a third of the steps, then the better half at all of them.

    Args:
        costs: Cost of each recipe; a single one is trained at all steps only.
        steps: Optimizer steps of the second rung.
        num_folds: Number of folds.
        num_final: Number of trainings on all labels at the end.
    """
    first = sum(cost.of(steps // RUNG) for cost in costs) if len(costs) > 1 else 0.0
    full = sorted((cost.of(steps) for cost in costs), reverse=True)[: math.ceil(len(costs) / 2)]
    return num_folds * (first + sum(full)) + num_final * full[0]


def plan_halving(seconds: float, costs: Sequence[Cost], num_folds: int, num_final: int) -> tuple[int, int]:
    """Return how many of the recipes, in their order, and how many optimizer steps fit into the time; 0, 0 for none.

    Args:
        seconds: Time.
        costs: Cost of each recipe, the most promising first.
        num_folds: Number of folds.
        num_final: Number of trainings on all labels at the end.
    """
    for count in range(len(costs), 0, -1):
        least = MIN_STEPS_OF_MANY if count > 2 else TRAINING_STEPS[0]
        fitting = [
            steps
            for steps in TRAINING_STEPS
            if steps >= least and predict_halving(costs[:count], steps, num_folds, num_final) <= seconds
        ]
        if fitting:
            return count, fitting[-1]
    return 0, 0


def format_seconds(seconds: float) -> str:
    """Format a duration for people.

    Args:
        seconds: Duration.
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
